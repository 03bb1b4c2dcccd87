"""What is on disk: artifacts, files that are replaced whole, sources wherever they are."""
