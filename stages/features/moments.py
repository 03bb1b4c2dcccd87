"""Mean and variance over the training split, from sums that Beam combines.

The sums of a few files are converted to integers, in steps of 2⁻²⁰ or finer; integers add up to the
same total in any order, on any workers, and so give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEP = 2**20
FINE = 2**200
"""For numbers in any unit: volts can be large numbers, and farads tiny ones."""
EXACT_ROWS = 2**24 // 255**2
"""Number of squared bytes whose sum float32 still holds exactly."""
BLOCK_ROWS = 1024
"""Rows converted to float64 at a time: few enough for a core's cache."""
Sums = tuple[list[int], list[str], list[str]]
"""How many values each group has, their sums and the sums of their squares, in steps; the sums as
decimal text, because Beam's integers have only 64 bits."""


def sums_of(values: np.ndarray, groups: int, step: int = STEP) -> Sums:
    """Sums of the values of some files (frames, features), in whose columns the groups (channels,
    mel bins) alternate. NaN stands for a missing value, which does not count."""
    first, second = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    # Patches are wide, so this vectorises; sums of so few bytes are exact in float32 too.
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
    """The sums of several parts; associative and exact, so Beam can combine with it."""
    totals: list[list[int]] = [[], [], []]
    for part in parts:
        if part[0]:
            numbers = [[int(number) for number in column] for column in part]
            totals = [
                [a + b for a, b in zip(running or [0] * len(other), other, strict=True)]
                for running, other in zip(totals, numbers, strict=True)
            ]
    counts, first, second = totals
    return counts, [*map(str, first)], [*map(str, second)]


def moments(sums: Sums, step: int = STEP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each group; a deviation of 0 becomes 1, and a group without
    values has the mean 0."""
    first, second = ([int(total) for total in totals] for totals in sums[1:])
    counts = [max(1, count) for count in sums[0]]
    means = tuple(total / count / step for count, total in zip(counts, first, strict=True))
    # Integers: no precision is lost if the variance is small compared with the mean.
    variances = [
        max(0.0, (count * square * step - total * total) / (count * count) / step**2)
        for count, total, square in zip(counts, first, second, strict=True)
    ]
    return means, tuple(float(np.sqrt(variance)) or 1.0 for variance in variances)
