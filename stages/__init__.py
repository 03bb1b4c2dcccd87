"""The stages of the corridor, one file each. Networks are in `model`, graphs in `exports`."""
