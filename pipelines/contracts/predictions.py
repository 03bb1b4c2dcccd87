"""What `generate` writes beside its rows."""

from __future__ import annotations

from pipelines.contracts.base import Contract

PROMPTS = "prompts.json"
"""A list of `Answer`."""


class Answer(Contract):
    """A user's own source, and what the model made of it."""

    prompt: str
    output: str
