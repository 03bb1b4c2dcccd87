"""The stage `speak`: words in, synthetic speech out."""
