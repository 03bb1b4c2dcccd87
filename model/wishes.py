"""Wishes: attributes that a finished output should have, `style: formal` for instance.

A model that knows wishes has, for each of them, the values that its training rows had. How much
each value is wished for is a vector: the strength at the value that is wanted, 0 at all others.
Zeros are no wish. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np

UNKNOWN = -1
"""Instead of the number of a value, where a row has none."""


@dataclass(frozen=True)
class Wishes:
    """The wishes that a model knows. Their values are numbered one wish after the other, in the
    order of their names: files keep no other order."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each wish."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(sorted(self.values.items())))

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def count(self) -> int:
        """Values of all wishes together."""
        return sum(map(len, self.values.values()))

    @property
    def groups(self) -> Iterator[tuple[str, range]]:
        """Each wish, and the numbers of its values."""
        first = 0
        for wish, values in self.values.items():
            yield wish, range(first, first + len(values))
            first += len(values)

    def check(self, wish: str, value: str | None = None) -> None:
        """Raises `ValueError` for a wish, or one of its values, that the model does not know, with
        the nearest name that it does."""
        if wish not in self.values:
            raise ValueError(f"the model knows no wish {wish!r}{_near(wish, self.values)}")
        if value is not None and value not in self.values[wish]:
            raise ValueError(
                f"wish {wish}: there is no value {value!r}{_near(value, self.values[wish])}"
            )

    def strengths(self, wanted: Sequence[Mapping[str, str]], strength: float) -> np.ndarray:
        """(rows, values) float32, from each row's wishes. Raises `ValueError`."""
        strengths = np.zeros((len(wanted), self.count), dtype=np.float32)
        first = {wish: numbers.start for wish, numbers in self.groups}
        for row, wishes in enumerate(wanted):
            for wish, value in wishes.items():
                self.check(wish, value)
                strengths[row, first[wish] + self.values[wish].index(value)] = strength
        return strengths


def _near(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    listed = sorted(known)
    if not listed:
        return ": it was trained without wishes"
    close = get_close_matches(name, listed, 1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f" among {', '.join(listed)}{meant}"
