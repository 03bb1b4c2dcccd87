"""The stage `image`: pictures in, patches out."""
