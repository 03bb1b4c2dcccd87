"""Rows on disk: shards, rejects, records with the facts of their tasks."""
