"""The stage `score`: predictions in, scores out."""
