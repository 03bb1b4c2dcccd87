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
from pyarrow import parquet

from pipelines.store.shared import SharedPath
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

    files: Mapping[SharedPath, Sequence[int]]
    """To keys, in the order in which rows are to be read."""

    @cached_property
    def places(self) -> Mapping[int, Mapping[SharedPath, Sequence[int]]]:
        """Where the batches of each key are: file to numbers."""
        places: dict[int, dict[SharedPath, list[int]]] = {}
        for place, keys in self.files.items():
            for number, key in enumerate(keys):
                places.setdefault(key, {}).setdefault(place, []).append(number)
        return places

    def read(self, key: int) -> pl.DataFrame | None:
        """All tables of a key; a column that one of them lacks is null there."""
        return read_batches(self.places.get(key, {}))

    def indexed(self, index: SharedPath) -> IndexedBatches:
        """The same for workers.

        Args:
            index: a file, beside all the others.
        """
        count = sum(len(keys) for keys in self.files.values())
        listed = {place: keys for place, keys in self.files.items() if keys}
        keys = np.fromiter((key for each in listed.values() for key in each), np.int32, count)
        order = np.argsort(keys, kind="stable")
        numbers = np.repeat(np.arange(len(listed), dtype=np.int32), [*map(len, listed.values())])
        batches = np.fromiter((n for each in listed.values() for n in range(len(each))), np.int32)
        names = pa.array([place.file for place in listed], pa.string())
        files = pa.DictionaryArray.from_arrays(pa.array(numbers[order]), names)
        table = pa.table({"key": keys[order], "file": files, "batch": batches[order]})
        index.here.parent.mkdir(parents=True, exist_ok=True)
        written = temporary(index.here)
        parquet.write_table(table, written, row_group_size=INDEX_GROUP)
        put_in_place(written, index.here)
        index.put()
        return IndexedBatches(index)


INDEX_GROUP = 16_000
"""Batches that are looked at together in an index."""


@dataclass(frozen=True)
class IndexedBatches:
    """Batches whose keys are in a file of their own. So what workers are sent does not grow with
    the number of files, and what they read of it hardly does."""

    index: SharedPath

    def read(self, key: int) -> pl.DataFrame | None:
        """See `Batches.read`."""
        with self.index.arrow() as file:
            found = parquet.read_table(file, filters=[("key", "==", key)])
        places: dict[SharedPath, list[int]] = {}
        for name, number in zip(found["file"].to_pylist(), found["batch"].to_pylist(), strict=True):
            places.setdefault(self.index.parent / name, []).append(number)
        return read_batches(places)


def read_batches(places: Mapping[SharedPath, Sequence[int]]) -> pl.DataFrame | None:
    """The batches of some files, by their numbers; None if there are none."""
    parts: list[pl.DataFrame] = []
    for place, numbers in places.items():
        with place.arrow() as file:
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
