"""What a decoder's tokens stand for. Text is one kind of target; codecs of others stand beside it.

Sources are many and padded together; a target is one sequence of tokens, whatever it stands for.
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
        """Tokens that there are, PAD, BOS, EOS and UNK included."""

    @abstractmethod
    def encode(self, targets: Sequence[str]) -> Ragged:
        """Tokens of targets as the column `target` of records has them, EOS last and no BOS."""

    @abstractmethod
    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Targets as the column `target` would have them, which is what metrics compare."""

    @abstractmethod
    def limits(self, positions: np.ndarray, longest: int) -> np.ndarray:
        """The most tokens to decode, EOS not counted, for sources of so many positions (rows,), of
        a model that takes targets of `longest` positions."""


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
    """Twice as many tokens as there are positions and ten, as fairseq's `max_len_a` and `max_len_b`
    are commonly set, and never more than the model takes."""
    return np.minimum(positions * 2 + 10, longest - 1)
