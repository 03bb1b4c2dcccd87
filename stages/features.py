"""Feature columns as arrays for training and decoding."""

from __future__ import annotations

import numpy as np
import polars as pl

from model.batching import Ragged


def ragged(column: pl.Series) -> Ragged:
    """A column of lists of ids as one flat array with offsets."""
    lengths = column.list.len().to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    filled = column.filter(column.list.len() > 0)
    return Ragged(filled.explode().to_numpy().astype(np.int64), offsets)
