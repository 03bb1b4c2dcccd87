"""Mean and variance over the training split, from sums that Beam combines.

The sums of a few files are turned into whole numbers, in steps of 2⁻²⁰; whole numbers add up to
the same in any order, on any workers, and so to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

STEP = 2**20
EXACT_ROWS = 2**24 // 255**2
"""Squares of bytes that add up to no more than float32 counts without a gap."""
BLOCK_ROWS = 1024
"""Rows turned into float64 at a time: few enough for a core's cache."""
Sums = tuple[int, list[int], list[int]]
"""How many values each group has, their sums and the sums of their squares, in steps of 1/STEP."""


def sums_of(values: np.ndarray, groups: int) -> Sums:
    """Of the values of some files (frames, features), in which the groups (channels, mel bins)
    take turns."""
    first, second = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    # Patches are wide, which vectorises; sums of so few bytes are whole numbers in float32 too.
    whole = values.dtype == np.uint8
    block = EXACT_ROWS if whole else BLOCK_ROWS
    for start in range(0, len(values), block):
        wide: np.ndarray = values[start : start + block].astype("f4" if whole else "f8")
        first += wide.sum(axis=0)
        second += np.einsum("ij,ij->j", wide, wide)
    totals, squares = (sums.reshape(-1, groups).sum(axis=0) for sums in (first, second))
    return values.size // groups, _steps(totals), _steps(squares)


def _steps(totals: np.ndarray) -> list[int]:
    whole: list[int] = np.rint(totals * STEP).astype(np.int64).tolist()
    return whole


def merged(parts: Iterable[Sums]) -> Sums:
    """The sums of several parts; associative and exact, so Beam may combine by it."""
    count, first, second = 0, list[int](), list[int]()
    for part_count, part_first, part_second in parts:
        count += part_count
        if part_first:
            first = _added(first, part_first)
            second = _added(second, part_second)
    return count, first, second


def _added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one or [0] * len(other), other, strict=True)]


def moments(sums: Sums) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each group; a deviation of 0 becomes 1."""
    count, first, second = sums
    means = tuple(total / count / STEP for total in first)
    # Whole numbers: nothing is lost where the variance is small beside the mean.
    variances = [
        max(0.0, (count * square * STEP - total * total) / (count * count) / STEP**2)
        for total, square in zip(first, second, strict=True)
    ]
    return means, tuple(float(np.sqrt(variance)) or 1.0 for variance in variances)
