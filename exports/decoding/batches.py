"""Decodes many rows in batches of similar length, in parallel on several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from model.batching import sorted_batches

Decoded = TypeVar("Decoded")


def in_batches(
    lengths: np.ndarray,
    budget: int,
    decode: Callable[[np.ndarray], Sequence[Decoded]],
    on_rows: Callable[[int], None] = lambda _: None,
    threads: int = 1,
) -> list[Decoded]:
    """Applies `decode` to batches of row numbers of similar length; returns results in row order.

    Args:
        lengths: (rows,) or (rows, modalities) positions of each row.
        budget: batch size: maximum padded positions in a batch.
        on_rows: called with the number of rows after each batch.
        threads: number of batches decoded in parallel. Whole batches in parallel keep cores busier
            than splitting the small matrices of one step.
    """
    results: list[Any] = [None] * len(lengths)
    batches = sorted_batches(lengths, budget)
    with ThreadPoolExecutor(threads) as pool:
        for rows, decoded in zip(batches, pool.map(decode, batches), strict=True):
            for row, result in zip(rows, decoded, strict=True):
                results[row] = result
            on_rows(len(rows))
    return results
