"""The decoded output of a row, and the arithmetic that all searches share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KEPT_ROWS = 0.9
"""Finished sources leave a batch once at most this share of it still runs."""


@dataclass(frozen=True)
class Hypothesis:
    """The decoded output of one row."""

    tokens: list[int]
    """Without BOS and EOS."""
    gains: list[float]
    """Natural-log probability of each token, and of EOS where it was reached."""
    finished: bool
    """Whether EOS was reached."""
    coverage: float = 0.0
    """Σ log min(Σ attention, 1) over the positions of the source, if requested."""

    @property
    def score(self) -> float:
        """Natural-log probability of the whole hypothesis."""
        return sum(self.gains)


def still_running(running: np.ndarray) -> np.ndarray:
    """The rows that still run, in an order that moves as few of them as possible: those before the
    new end of the batch stay in place, those beyond it fill the gaps."""
    order = np.arange(running.sum())
    order[~running[: len(order)]] = len(order) + np.flatnonzero(running[len(order) :])
    return order


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural-log probabilities (batch, vocabulary)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def log_softmax_at(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Natural-log probabilities (batch,) of `tokens` under `logits` (batch, vocabulary)."""
    highest = logits.max(axis=1, keepdims=True)
    shifted = logits - highest
    chosen = shifted[np.arange(len(tokens)), tokens]
    np.exp(shifted, out=shifted)
    return chosen - np.log(shifted.sum(axis=1))
