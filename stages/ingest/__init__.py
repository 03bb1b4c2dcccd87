"""The stage `ingest`: files in, records out."""
