"""Constraints on the output, for every kind of search.

Rules forbid tokens and do not change probabilities, so the score of a hypothesis is the model's
own and equals its score under forced decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.vocabulary import EOS


@dataclass(frozen=True)
class Constraints:
    """Rules for every row. A hypothesis cannot continue if they forbid every token."""

    minimum: int = 0
    """Minimum number of tokens, EOS not counted."""
    no_repeat: int = 0
    """No n-gram of this size occurs twice (Paulus et al., 2018, section 2.5); 0 switches it off."""
    allowed: np.ndarray | None = None
    """(vocabulary,) which tokens are allowed at all; EOS always is."""
    prefixes: Sequence[Sequence[int]] | None = None
    """For each source, the tokens that its output begins with."""

    @property
    def any(self) -> bool:
        return bool(
            self.minimum or self.no_repeat or self.allowed is not None or self.prefixes is not None
        )

    def forbid(self, gains: np.ndarray, generated: np.ndarray, sources: np.ndarray) -> None:
        """Sets the forbidden next tokens to -inf, in place.

        Args:
            gains: (rows, vocabulary) log-probabilities or logits.
            generated: (rows, tokens) tokens that each row has generated so far.
            sources: (rows,) number of the source of each row.
        """
        position = generated.shape[1]
        prefixes = self.prefixes
        forced = [
            (row, token, gains[row, token])
            for row, source in enumerate(sources)
            for token in (prefixes[source][position : position + 1] if prefixes else ())
        ]
        if self.allowed is not None:
            allowed = self.allowed.copy()
            allowed[EOS] = True
            gains[:, ~allowed] = -np.inf
        if position < self.minimum:
            gains[:, EOS] = -np.inf
        if self.no_repeat:
            self._forbid_repeats(gains, generated)
        # The prefix was requested explicitly, so no other rule applies to it.
        for row, token, gain in forced:
            gains[row] = -np.inf
            gains[row, token] = gain

    def _forbid_repeats(self, gains: np.ndarray, generated: np.ndarray) -> None:
        size, position = self.no_repeat, generated.shape[1]
        if position < size:
            return
        begun = generated[:, position - size + 1 :]  # (rows, size - 1), the n-gram that may repeat
        for start in range(position - size + 1):
            same = (generated[:, start : start + size - 1] == begun).all(axis=1)
            rows = np.flatnonzero(same)
            gains[rows, generated[rows, start + size - 1]] = -np.inf
