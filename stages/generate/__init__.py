"""The stage `generate`: features and graphs in, predictions out."""
