"""The stage `audio`: sounds in, log-mel frames out."""
