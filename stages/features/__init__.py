"""Features on disk: how they are made of files, and read back row by row."""
