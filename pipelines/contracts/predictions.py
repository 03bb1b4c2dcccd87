"""What `generate` writes beside its rows."""

from __future__ import annotations

from pipelines.contracts.base import Contract

PROMPTS = "prompts.json"
"""A list of `Answer`."""
TRADEOFF_ROWS = "tradeoff.parquet"
"""Outputs for every wish in several strengths; see `pipelines.contracts.scores.Tradeoff`."""
WISHED = "wish."
"""Begins the names of the columns with what each row wished for: `wish.style`."""


class Answer(Contract):
    """A user's own source, and what the model made of it."""

    prompt: str
    output: str
