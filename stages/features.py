"""Feature columns as arrays for training and decoding."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from model.batching import Ragged


def column(name: str, rows: Ragged) -> pl.Series:
    """The reverse of `ragged`, as lists of 32-bit ids."""
    flat = pa.array(rows.values.astype(np.int32))
    lists = pa.LargeListArray.from_arrays(pa.array(rows.offsets), flat)
    return pl.Series(name, lists)


def ragged(column: pl.Series) -> Ragged:
    """A column of lists of ids as one flat array with offsets."""
    lengths = column.list.len().to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    filled = column.filter(column.list.len() > 0)
    return Ragged(filled.explode().to_numpy().astype(np.int64), offsets)
