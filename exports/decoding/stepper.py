"""The step protocol: what a search requires of the code that computes the steps.

A `Stepper` is anything that can start from a source and take one decoding step at a time: a
PyTorch model (`torch_stepper`) and ONNX Runtime (`session`, `device`) both are. A search depends
on neither; it works with NumPy arrays of token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from model.names import WISH
from model.wishes import Wishes

STRIDE = 8
"""Greedy steps that run on another device before their tokens are fetched."""


Source = Mapping[str, np.ndarray]
"""A batch of sources: modality to an array (batch, ...)."""


def wished(source: Source, batch: int, wishes: Wishes) -> np.ndarray:
    """The wish of every row of a batch (see `model.wishes`): none, if the source has none. Raises
    `ValueError` if the model does not know the source's wishes."""
    wish = source.get(WISH, np.zeros((batch, wishes.count), dtype=np.float32))
    if wish.shape[1] != wishes.count:
        raise ValueError(
            f"the wishes of the source are {wish.shape[1]} numbers, and the model takes "
            f"{wishes.count}"
        )
    return wish


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
    """Whether steps tell `model.names.ATTENTION`."""
    wishes: Wishes
    """Those that the model knows, if any."""
    judging: bool
    """Whether steps tell `model.names.MET`."""
    stride: int
    """Greedy steps between two checks of the decoded tokens: 1 where a check costs nothing, more
    where the results are on another device."""

    def start(self, source: Source, noise: np.ndarray | None = None) -> Any:
        """The state before the first step, with one hypothesis of each source. The latent variable
        is its prior's mean, plus the prior's deviation times `noise` (batch, latent)."""

    def step(self, state: Any, tokens: np.ndarray, position: int) -> tuple[np.ndarray, Any]:
        """Logits (batch, hypotheses, vocabulary) after the tokens (batch, hypotheses), and the
        state that follows. Do not use the given state again: its memory may be overwritten."""

    def best(self, state: Any, tokens: np.ndarray, position: int, count: int) -> tuple[Best, Any]:
        """The same step, but returns only the `count` best continuations, or all if there are
        fewer."""

    def advance(
        self, state: Any, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """Greedy steps after the tokens (batch,), for one hypothesis of each source, without
        stopping at EOS. Returns tokens and their natural-log probabilities, both (batch,
        steps), and the state that follows."""

    def told(self, state: Any, name: str) -> np.ndarray:
        """What the last step told of each hypothesis besides its next tokens: `attention` (batch,
        hypotheses, source), how much it attended to each position of its source, which sums to 1
        (padding has 1, as if it had been read); `met` (batch, hypotheses), the natural-log
        probability that a text which ends with this step meets its wishes."""

    def keep(self, state: Any, rows: np.ndarray) -> Any:
        """The state of only the given sources, in the order of `still_running`. It may reuse the
        memory of the given state, which must not be used again."""

    def reorder(self, state: Any, parents: np.ndarray) -> Any:
        """The state in which hypotheses continue `parents` (batch, hypotheses). The number of
        hypotheses may change."""
