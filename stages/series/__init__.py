"""The stage `series`: series of readings in, vectors out."""
