"""Tables in scratch, cut by key: what one step writes for others, each of which reads its keys.

So rows go from step to step through files, and no process holds more of them than it works on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from stages.rows.files import put_in_place, temporary

GROUP_BYTES = 64_000_000
"""About the most that a group of rows has, which is held in memory."""
OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class BatchFile:
    """Writes one file, atomically: an Arrow file with one batch for each table that is added."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.temporary = path, temporary(path)
        self.writer: pa.ipc.RecordBatchFileWriter | None = None
        self.keys: list[int] = []

    def add(self, key: int, table: pl.DataFrame) -> None:
        """Adds a table; all must have the same columns. An empty one is left out."""
        if table.is_empty():
            return
        arrow = table.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        if self.writer is None:
            self.writer = pa.ipc.new_file(str(self.temporary), arrow.schema, options=OPTIONS)
        for batch in arrow.to_batches():
            self.writer.write_batch(batch)
            self.keys.append(key)

    def add_parted(self, table: pl.DataFrame, keys: pl.Series) -> None:
        """Adds the part of a table that belongs to each key."""
        for (key,), part in table.with_columns(keys.alias(KEY)).group_by(
            [KEY], maintain_order=True
        ):
            self.add(int(str(key)), part.drop(KEY))

    def close(self) -> list[int]:
        """Puts the file in place; returns the key of each batch. There is none without rows."""
        if self.writer is not None:
            self.writer.close()
            put_in_place(self.temporary, self.path)
        return self.keys


KEY = "batch key"


@dataclass(frozen=True)
class Batches:
    """The files that a step has written, and the key of each of their batches."""

    files: Mapping[str, Sequence[int]]
    """Path to keys, in the order in which rows are to be read."""

    @cached_property
    def places(self) -> Mapping[int, Mapping[str, Sequence[int]]]:
        """Where the batches of each key are: path to numbers."""
        places: dict[int, dict[str, list[int]]] = {}
        for path, keys in self.files.items():
            for number, key in enumerate(keys):
                places.setdefault(key, {}).setdefault(path, []).append(number)
        return places

    def read(self, key: int) -> pl.DataFrame | None:
        """All tables of a key; a column that one of them lacks is null there."""
        parts: list[pl.DataFrame] = []
        for path, numbers in self.places.get(key, {}).items():
            with pa.memory_map(path) as file:
                reader = pa.ipc.open_file(file)
                for number in numbers:
                    part = pl.from_arrow(pa.Table.from_batches([reader.get_batch(number)]))
                    assert isinstance(part, pl.DataFrame)
                    parts.append(part)
        return pl.concat(parts, how="diagonal") if parts else None


def in_groups(tables: Iterable[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """The rows of several tables in tables of `size` rows, or of fewer if those would have more
    than `GROUP_BYTES`. Where one ends depends on nothing but the rows; a single row can be larger,
    and one table without rows is given if there are none."""
    held: list[pl.DataFrame] = []
    count, weight, given = 0, 0, False
    empty: pl.DataFrame | None = None
    for table in tables:
        empty = table.clear() if empty is None else empty
        weights = row_bytes(table).cumsum()
        start, before = 0, 0
        while start < len(table):
            fitting = int(np.searchsorted(weights, before + GROUP_BYTES - weight, side="right"))
            end = min(fitting, start + size - count, len(table))
            if end == start and not held:
                end = start + 1  # it does not fit anywhere
            if end > start:
                held.append(table[start:end])
                count, weight = count + end - start, weight + int(weights[end - 1]) - before
                start, before = end, int(weights[end - 1])
            if start < len(table) or count == size:
                yield pl.concat(held, how="diagonal")
                held, count, weight, given = [], 0, 0, True
    if held:
        yield pl.concat(held, how="diagonal")
    elif empty is not None and not given:
        yield empty


def row_bytes(table: pl.DataFrame) -> np.ndarray:
    """About the size (rows,) of each row's texts, files and lists."""
    sizes = [pl.lit(0, pl.Int64)]
    for name, kind in table.schema.items():
        column = pl.col(name)
        if kind == pl.String:
            sizes.append(column.str.len_bytes())
        elif kind == pl.Binary:
            sizes.append(column.bin.size())
        elif isinstance(kind, pl.List):
            sizes.append(8 * column.list.len())
    total = pl.sum_horizontal(each.cast(pl.Int64).fill_null(0) for each in sizes)
    return table.select(pl.repeat(0, pl.len(), dtype=pl.Int64) + total).to_series().to_numpy()
