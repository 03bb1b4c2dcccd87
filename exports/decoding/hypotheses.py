"""What was decoded for a row, and the arithmetic that searches share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KEPT_ROWS = 0.9
"""Sources that are done leave a batch once no larger share of it still runs."""


@dataclass(frozen=True)
class Hypothesis:
    """What was decoded for one row."""

    tokens: list[int]
    """Without BOS and EOS."""
    gains: list[float]
    """Natural-log probability of each token, and of EOS where it was reached."""
    finished: bool
    """Whether EOS was reached."""
    coverage: float = 0.0
    """Σ log min(Σ attention, 1) over the positions of the source, where that is asked for."""

    @property
    def score(self) -> float:
        """Natural-log probability of the whole."""
        return sum(self.gains)


def still_running(running: np.ndarray) -> np.ndarray:
    """The rows that still run, in an order in which as few as possible move: those before the new
    end of the batch stay in place, those beyond it come into the gaps."""
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
