"""What a hypothesis may and may not say, for every kind of search.

Rules forbid tokens; they change no probability, so that the score of a hypothesis is the model's
own and equals what forced decoding gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.vocabulary import EOS


@dataclass(frozen=True)
class Constraints:
    """Rules for every row. Where they leave nothing to say, a hypothesis cannot go on."""

    minimum: int = 0
    """The fewest tokens, EOS not counted."""
    no_repeat: int = 0
    """No n-gram of this many tokens comes twice (Paulus et al., 2018, section 2.5); 0 for any."""
    allowed: np.ndarray | None = None
    """(vocabulary,) which tokens may be said at all; EOS always may."""
    prefixes: Sequence[Sequence[int]] | None = None
    """For every source the tokens it begins with."""

    @property
    def any(self) -> bool:
        return bool(
            self.minimum or self.no_repeat or self.allowed is not None or self.prefixes is not None
        )

    def forbid(self, gains: np.ndarray, said: np.ndarray, sources: np.ndarray) -> None:
        """Sets what may not come next to -inf, in place.

        Args:
            gains: (rows, vocabulary) log-probabilities or logits.
            said: (rows, tokens) what each row has said so far.
            sources: (rows,) number of the source that each row is of.
        """
        position = said.shape[1]
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
            self._forbid_repeats(gains, said)
        # A prefix is what was asked for: no other rule holds for it.
        for row, token, gain in forced:
            gains[row] = -np.inf
            gains[row, token] = gain

    def _forbid_repeats(self, gains: np.ndarray, said: np.ndarray) -> None:
        size, position = self.no_repeat, said.shape[1]
        if position < size:
            return
        begun = said[:, position - size + 1 :]  # (rows, size - 1), the n-gram that may repeat
        for start in range(position - size + 1):
            same = (said[:, start : start + size - 1] == begun).all(axis=1)
            rows = np.flatnonzero(same)
            gains[rows, said[rows, start + size - 1]] = -np.inf
