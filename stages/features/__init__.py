"""Features on disk: how they are made from files, and read back row by row."""
