"""Mean and variance over the training split, from sums that Beam combines.

The sums of a few files are turned into whole numbers, in steps of 2⁻²⁰ or finer; whole numbers add
up to the same in any order, on any workers, and so to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEP = 2**20
FINE = 2**200
"""For numbers of any unit, of which a volt may be many and a farad few."""
EXACT_ROWS = 2**24 // 255**2
"""Squares of bytes that add up to no more than float32 counts without a gap."""
BLOCK_ROWS = 1024
"""Rows turned into float64 at a time: few enough for a core's cache."""
Sums = tuple[list[int], list[str], list[str]]
"""How many values each group has, their sums and the sums of their squares, in steps; as decimal
numerals, because Beam's whole numbers end at 64 bits."""


def sums_of(values: np.ndarray, groups: int, step: int = STEP) -> Sums:
    """Of the values of some files (frames, features), in which the groups (channels, mel bins)
    take turns. NaN stands for what is missing, and does not count."""
    first, second = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    # Patches are wide, which vectorises; sums of so few bytes are whole numbers in float32 too.
    whole = values.dtype == np.uint8
    block = EXACT_ROWS if whole else BLOCK_ROWS
    counts = np.zeros(values.shape[1], dtype=np.int64)
    for start in range(0, len(values), block):
        wide: np.ndarray = values[start : start + block].astype("f4" if whole else "f8")
        counts += len(wide)
        if not whole:
            missing = np.isnan(wide)
            if missing.any():
                counts -= missing.sum(axis=0)
                wide[missing] = 0
        first += wide.sum(axis=0)
        second += np.einsum("ij,ij->j", wide, wide)
    totals, squares, numbers = (
        sums.reshape(-1, groups).sum(axis=0) for sums in (first, second, counts)
    )
    return numbers.tolist(), _steps(totals, step), _steps(squares, step)


def _steps(totals: np.ndarray, step: int) -> list[str]:
    return [str(int(total)) for total in np.rint(totals * float(step))]


def merged(parts: Iterable[Sums]) -> Sums:
    """The sums of several parts; associative and exact, so Beam may combine by it."""
    totals: list[list[int]] = [[], [], []]
    for part in parts:
        if part[0]:
            numbers = [[int(number) for number in column] for column in part]
            totals = [
                [a + b for a, b in zip(one or [0] * len(other), other, strict=True)]
                for one, other in zip(totals, numbers, strict=True)
            ]
    counts, first, second = totals
    return counts, [*map(str, first)], [*map(str, second)]


def moments(sums: Sums, step: int = STEP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each group; a deviation of 0 becomes 1, and what there is
    nothing to take a mean of has the mean 0."""
    first, second = ([int(total) for total in totals] for totals in sums[1:])
    counts = [max(1, count) for count in sums[0]]
    means = tuple(total / count / step for count, total in zip(counts, first, strict=True))
    # Whole numbers: nothing is lost where the variance is small beside the mean.
    variances = [
        max(0.0, (count * square * step - total * total) / (count * count) / step**2)
        for count, total, square in zip(counts, first, second, strict=True)
    ]
    return means, tuple(float(np.sqrt(variance)) or 1.0 for variance in variances)
