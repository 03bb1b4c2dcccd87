"""Data on disk: artifacts, files that are replaced atomically, local and remote sources."""
