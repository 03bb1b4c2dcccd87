"""The stages, one file or folder each. Networks are in `model`, graphs in `exports`."""
