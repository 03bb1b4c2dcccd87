"""The stage `text`: records in, subword ids out."""
