"""Rows on disk: shards, rejects, records with the facts about their tasks."""
