"""The stages of the corridor, one file each. Thin: the networks are in `model`, graphs in `exports`."""
