"""Columns of lists: token ids and numbers, to and from flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import polars as pl
import pyarrow as pa

from model.batching import Ragged


def column(name: str, rows: Ragged) -> pl.Series:
    """The reverse of `ragged`, as lists of 32-bit ids."""
    return _lists(name, rows.values.astype(np.int32), rows.offsets)


def float_lists(name: str, rows: Sequence[Sequence[float]], decimals: int) -> pl.Series:
    """A column of lists of rounded numbers. (polars itself looks at every list, and takes ten
    times as long.)"""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.fromiter(chain.from_iterable(rows), np.float64, int(offsets[-1]))
    return _lists(name, values.round(decimals), offsets)


def _lists(name: str, values: np.ndarray, offsets: np.ndarray) -> pl.Series:
    return pl.Series(name, pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)))


def ragged(column: pl.Series) -> Ragged:
    """A column of lists of ids as one flat array with offsets."""
    lengths = column.list.len().to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    filled = column.filter(column.list.len() > 0)
    return Ragged(filled.explode().to_numpy().astype(np.int64), offsets)
