"""The step protocol: what a search asks of whoever takes the steps.

A `Stepper` is anything that can start from a source and take one decoding step at a time: a
PyTorch model (`torch_stepper`) and ONNX Runtime (`session`, `device`) both are. A search knows
neither; it deals in NumPy arrays of token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

STRIDE = 8
"""Greedy steps that are taken on another device before their tokens are fetched."""


Source = Mapping[str, np.ndarray]
"""A batch of sources: modality to an array (batch, ...)."""


class Best(NamedTuple):
    """The most probable continuations of every hypothesis, the best first."""

    tokens: np.ndarray
    """(batch, hypotheses, count) int64."""
    gains: np.ndarray
    """(batch, hypotheses, count) float64 natural-log probabilities."""


class Stepper(Protocol):
    """One decoding step at a time, of one or more hypotheses of every source. The state belongs to
    the stepper; the loop only passes it on."""

    latent: int
    """Dimensions of the latent variable; 0 for none."""
    attentive: bool
    """Whether `attention` can be asked for."""
    stride: int
    """Greedy steps to take between two looks at what was decoded: 1 where looking costs nothing,
    more where the results are on another device."""

    def start(self, source: Source, noise: np.ndarray | None = None) -> Any:
        """The state before the first step, with one hypothesis of each source. The latent variable
        is its prior's mean, plus the prior's deviation times `noise` (batch, latent)."""

    def step(self, state: Any, tokens: np.ndarray, position: int) -> tuple[np.ndarray, Any]:
        """Logits (batch, hypotheses, vocabulary) after the tokens (batch, hypotheses), and the
        state that follows. The state given has no further use: its memory may be written over."""

    def best(self, state: Any, tokens: np.ndarray, position: int, count: int) -> tuple[Best, Any]:
        """The same step, of which only the `count` best continuations are wanted, or all where
        there are fewer."""

    def advance(
        self, state: Any, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """Greedy steps after the tokens (batch,), of one hypothesis of each source, whatever comes,
        EOS too: tokens and their natural-log probabilities, both (batch, steps), and the state
        that follows."""

    def attention(self, state: Any) -> np.ndarray:
        """How much each hypothesis attended to each position of its source in the last step,
        (batch, hypotheses, source): sums to 1, and to padding 1, as if it had been read."""

    def keep(self, state: Any, rows: np.ndarray) -> Any:
        """The state of the given sources alone, in the order of `still_running`. It may reuse the
        memory of the state given, which has no further use."""

    def reorder(self, state: Any, parents: np.ndarray) -> Any:
        """The state in which hypotheses go on from `parents` (batch, hypotheses), of which there
        may be another number than before."""
