"""Which positions of a source's history each of its hypotheses may see.

All hypotheses of a source share one history, to which every step adds a position for each of
them. When hypotheses diverge, nothing is copied: positions outside a hypothesis's own past are
masked.
"""

from __future__ import annotations

import functools

import numpy as np

from model.vocabulary import MASKED


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
