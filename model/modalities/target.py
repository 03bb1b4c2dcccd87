"""How targets map to a decoder's tokens. Text is one kind of target; other codecs may be added.

A row may have many sources, which are padded together; every target is one sequence of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from model.batching import Ragged
from model.modalities.text import TextProcessor


class TargetCodec(ABC):
    """How targets become tokens, and tokens targets."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of different tokens, PAD, BOS, EOS and UNK included."""

    @abstractmethod
    def encode(self, targets: Sequence[str]) -> Ragged:
        """Tokens of targets from the column `target` of records, EOS last and no BOS."""

    @abstractmethod
    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Targets in the form of the column `target`, which metrics compare."""

    @abstractmethod
    def limits(self, positions: np.ndarray, longest: int) -> np.ndarray:
        """Maximum number of tokens to decode, EOS not counted, for sources with `positions` (rows,)
        and a model that takes targets of up to `longest` positions."""


class TextTarget(TargetCodec):
    """Subwords of text."""

    def __init__(self, text: TextProcessor) -> None:
        self.text = text

    @property
    def size(self) -> int:
        return self.text.size("target")

    def encode(self, targets: Sequence[str]) -> Ragged:
        return self.text.encode(targets, "target")

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return self.text.decode(tokens)

    def limits(self, positions: np.ndarray, longest: int) -> np.ndarray:
        return text_limits(positions, longest)


def text_limits(positions: np.ndarray, longest: int) -> np.ndarray:
    """Twice the number of positions plus ten, as fairseq's `max_len_a` and `max_len_b` are commonly
    set, and never more than the model takes."""
    return np.minimum(positions * 2 + 10, longest - 1)
