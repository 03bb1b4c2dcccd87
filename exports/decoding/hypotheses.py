"""The decoded output of a row, and what all searches share: arithmetic, and which positions of a
source's history each of its hypotheses may see.

All hypotheses of a source share one history, to which every step adds a position for each of them.
When hypotheses diverge, nothing is copied: positions outside a hypothesis's own past are masked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from model.vocabulary import MASKED

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
    met: float = 0.0
    """Natural-log probability that it meets its wishes, as the model's own head judges it; 0 if
    it has none."""

    @property
    def score(self) -> float:
        """Natural-log probability of the whole hypothesis."""
        return sum(self.gains)

    @property
    def mean(self) -> float:
        """Natural-log probability of a token, on average."""
        return self.score / max(1, len(self.gains))


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


def nothing_seen(batch: int) -> np.ndarray:
    """Before the first step: one hypothesis of each source, and no history."""
    return np.zeros((batch, 1, 0), dtype=np.float32)


def with_step(seen: np.ndarray) -> np.ndarray:
    """`seen` (batch, hypotheses, history) with the positions that the next step adds."""
    batch, hypotheses, history = seen.shape
    grown = np.empty((batch, hypotheses, history + hypotheses), dtype=np.float32)
    grown[:, :, :history] = seen
    grown[:, :, history:] = _own(hypotheses)
    return grown


@functools.cache
def _own(hypotheses: int) -> np.ndarray:
    """Mask of a step's new positions: each hypothesis sees only its own."""
    return np.where(np.eye(hypotheses, dtype=bool), 0, MASKED)


def continued(values: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """`values` (batch, hypotheses, ...) of the hypotheses that continue `parents` (batch,
    hypotheses)."""
    return values[np.arange(len(parents))[:, None], parents]
