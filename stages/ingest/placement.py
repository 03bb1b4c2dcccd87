"""Third step of ingest: every row gets its split. Fourth: it goes to the shard of its id."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from model.modalities.known import MEDIA
from pipelines.running.beam_jobs import Ticks
from pipelines.store.shared import SharedPath
from pipelines.store.sources import SourceError, read_whole
from stages.ingest.grouping import Bucket, Grouping
from stages.rows.batches import GROUP_BYTES, BatchFile, IndexedBatches, in_groups
from stages.rows.files import sizes_of
from stages.rows.rejects import RejectFile
from stages.rows.shards import (
    MEDIA_GROUP,
    ROW_GROUP,
    record_file,
    shard_name,
    shard_of,
    with_modalities,
)


def choose_groups(
    tables: Sequence[SharedPath], split: Mapping[Any, int | float], whole: bool = False
) -> dict[str, str]:
    """Which groups, each of one source, make up the splits that are given as numbers of rows.

    Groups are taken in the order of their hash, test first; one that would exceed the number is
    skipped. So the choice depends only on the sources, not on how they are stored.

    Args:
        tables: those of the buckets, in the order of the hashes.
        whole: whether all rows of a group become one.
    """
    wanted = {name: size for name, size in split.items() if isinstance(size, int)}
    chosen: dict[str, str] = {}
    for name in ("test", "valid"):
        left, largest = wanted.get(name, 0), 1
        if not left:
            continue
        for group, rows in _groups(tables):
            count = 1 if whole else rows
            largest = max(largest, count)
            if left == 0:
                break
            if group not in chosen and count <= left:
                chosen[group] = name
                left -= count
        # Groups are not divided, so a few of the rows that were asked for may be missing.
        if left >= largest:
            raise ValueError(
                f"split: {name}: {wanted[name]} rows were asked for, but there are not that many"
            )
    return chosen


def _groups(tables: Sequence[SharedPath]) -> Iterator[tuple[str, int]]:
    """Every group without a declared split and its rows, in the order of their hashes."""
    for place in tables:
        groups = pl.read_parquet(Path(place), columns=["split", "group"])
        free = groups.filter(pl.col("split").is_null())
        yield from free.group_by("group").len().sort("group").iter_rows()


@dataclass(frozen=True)
class PlacedBucket:
    """What became of a bucket when its rows got their splits."""

    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    batches: list[int]
    """The key of each batch in its file: the shard, and the range of ids in it."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class Splitting:
    """The function that gives the rows of a bucket their split, and cuts them by shard and range of
    ids."""

    def __init__(
        self,
        folder: SharedPath,
        grouping: Grouping,
        chosen: SharedPath,
        sizes: Mapping[Any, int | float],
        shards: int,
        ends: Sequence[str],
        references: int = 0,
    ) -> None:
        """
        Args:
            grouping: knows the table of each bucket.
            chosen: a table with the split of each group that was chosen for one.
            ends: the ids at which a new range begins, in order.
            references: how many further targets a row of valid and test has.
        """
        self.folder, self.grouping, self.shards, self.ends = folder, grouping, shards, list(ends)
        self.references = references
        self.chosen = chosen
        self.shares = {name: size for name, size in sizes.items() if isinstance(size, float)}

    def path(self, bucket: Bucket) -> SharedPath:
        return self.folder / f"placed-{bucket.name}.arrow"

    def rejects(self, bucket: Bucket) -> SharedPath:
        return self.folder / f"rejects-3-{bucket.name}.arrow"

    def split_of(self, group: str, chosen: Mapping[str, str]) -> str:
        """The split of a group: the one it was chosen for, else the one its hash falls into."""
        if group in chosen:
            return chosen[group]
        # The bucket used the first eight digits; these are independent of it.
        fraction = int(group[8:16], 16) / 2**32
        below = 0.0
        for name in ("test", "valid"):
            below += self.shares.get(name, 0.0)
            if fraction < below:
                return name
        return "train"

    def __call__(self, bucket: Bucket, ticks: Ticks) -> PlacedBucket:
        rejects = RejectFile(self.rejects(bucket).here, self.shards)
        placed = BatchFile(self.path(bucket).here)
        table = pl.read_parquet(Path(self.grouping.path(bucket)))
        groups = pl.scan_parquet(Path(self.chosen))
        mine = groups.filter(pl.col("group").is_in(table["group"].unique().implode())).collect()
        chosen = dict(mine.iter_rows())
        ticks(1)
        declared = table.select("split", "group").rows()
        open_groups = {group for split, group in declared if split is None}
        splits, reasons = [], []
        for split, group in declared:
            place = self.split_of(group, chosen) if group in open_groups else split
            splits.append(split or place)
            reasons.append(
                None if place in (None, split or place) else "source is in another split"
            )
        table = table.with_columns(
            pl.Series("split", splits, dtype=pl.String),
            pl.Series("reason", reasons, dtype=pl.String),
        )
        if self.references:
            table = with_references(table, self.references)
        rejects.add_rows(table.filter(pl.col("reason").is_not_null()), "ingest")
        table = table.filter(pl.col("reason").is_null()).drop("reason")
        keys = [
            shard_of(id, self.shards) * (len(self.ends) + 1) + bisect_right(self.ends, id)
            for id in table["id"]
        ]
        placed.add_parted(table, pl.Series(keys, dtype=pl.Int64))
        keys, batches = rejects.close(), placed.close()
        files = sizes_of(self.path(bucket), self.rejects(bucket))
        return PlacedBucket(rejects.counts, keys, batches, files)


def reference_columns(count: int) -> list[str]:
    """The columns of further targets."""
    return [f"target_{number}" for number in range(2, 2 + count)]


def with_references(table: pl.DataFrame, count: int) -> pl.DataFrame:
    """Rows of valid and test that are not rejected become one for each group: the first, with the
    others' targets in columns; the others are rejected."""
    evaluated = (pl.col("split") != "train") & pl.col("reason").is_null()
    first, rest = table.filter(evaluated), table.filter(~evaluated | evaluated.is_null())
    first = first.sort("group", "number", "line", maintain_order=True)
    further = {
        name: pl.col("target").shift(-number).over("group")
        for number, name in enumerate(reference_columns(count), start=1)
    }
    nth = pl.int_range(pl.len()).over("group")
    first = first.with_columns(**further, reason=pl.when(nth > 0).then(pl.lit("further reference")))
    return pl.concat([rest, first], how="diagonal_relaxed")


def range_ends(ids: Sequence[str], ranges: int) -> list[str]:
    """The ids that cut a sample into ranges of about the same number."""
    ordered = sorted(set(ids))
    ranges = min(ranges, len(ordered))
    return [ordered[len(ordered) * number // ranges] for number in range(1, ranges)]


@dataclass(frozen=True)
class Shard:
    """A shard of the records."""

    number: int
    shards: int

    @property
    def name(self) -> str:
        return shard_name(self.number, self.shards)


@dataclass(frozen=True)
class WrittenShard:
    """What became of a shard."""

    splits: dict[str, int]
    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class Writing:
    """The function that writes a shard, sorted by id, range by range; a second row of the same id
    is rejected."""

    def __init__(
        self,
        folder: SharedPath,
        placed: IndexedBatches,
        ranges: int,
        free: Sequence[str],
        media: Sequence[str],
        max_file_bytes: int,
    ) -> None:
        """
        Args:
            placed: the rows by shard and range.
            free: the columns of the user's own.
            media: the modalities that any row has, except text.
        """
        self.folder, self.placed, self.ranges = folder, placed, ranges
        self.free, self.media, self.max_file_bytes = list(free), list(media), max_file_bytes

    def path(self, shard: Shard) -> SharedPath:
        return self.folder / "rows" / f"{shard.name}.parquet"

    def rejects(self, shard: Shard) -> SharedPath:
        return self.folder / f"rejects-4-{shard.name}.arrow"

    def __call__(self, shard: Shard, ticks: Ticks) -> WrittenShard:
        rejects = RejectFile(self.rejects(shard).here, shard.shards)
        splits: dict[str, int] = {}

        def ranges() -> Iterator[pl.DataFrame]:
            for number in range(self.ranges):
                table = self.placed.read(shard.number * self.ranges + number)
                if table is None:
                    continue
                table = table.sort("id", "number", "line", maintain_order=True)
                repeated = ~table["id"].is_first_distinct()
                dropped = table.filter(repeated).with_columns(reason=pl.lit("duplicate id"))
                rejects.add_rows(dropped, "ingest")
                yield with_modalities(_with_presence(table.filter(~repeated)))

        group = MEDIA_GROUP if self.media else ROW_GROUP
        with record_file(self.path(shard).here, self.media, self.free) as written:
            for part in in_groups(ranges(), group):
                for split, count in part.group_by("split").len().iter_rows():
                    splits[split] = splits.get(split, 0) + count
                for filled in self.with_files(part):
                    written.add(filled)
        ticks(1)
        keys = rejects.close()
        files = sizes_of(self.path(shard), self.rejects(shard))
        return WrittenShard(splits, rejects.counts, keys, files)

    def with_files(self, table: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The rows with the content of the files that they name, some at a time."""
        names = _named(table)
        if not names:
            yield table
            return
        facts = [column for name in names for column in (name, f"{name}_url", f"{name}_sha256")]
        held: dict[str, list[bytes | None]] = {name: [] for name in names}
        start = weight = 0
        for number, row in enumerate(table.select(facts).iter_rows(named=True)):
            for name in names:
                url, data = row[f"{name}_url"], row[name]
                held[name].append(self.read(url, row[f"{name}_sha256"]) if url else data)
                weight += len(held[name][-1] or b"")
            if weight > GROUP_BYTES or number == len(table) - 1:
                filled = [
                    pl.Series(name, content, dtype=pl.Binary) for name, content in held.items()
                ]
                yield table[start : number + 1].with_columns(filled)
                held = {name: [] for name in names}
                start, weight = number + 1, 0

    def read(self, url: str, wanted: str) -> bytes:
        """A file, which must be as it was when its row was parsed."""
        try:
            data = read_whole(url, self.max_file_bytes)
        except (FileNotFoundError, ValueError) as error:
            raise SourceError(f"{url} has changed while it was read: {error}") from error
        if hashlib.sha256(data).hexdigest() != wanted:
            raise SourceError(f"{url} has changed while it was read; run again")
        return data


def _named(table: pl.DataFrame) -> list[str]:
    """The modalities whose files rows name."""
    return [name for name in MEDIA if f"{name}_url" in table.columns]


def _with_presence(table: pl.DataFrame) -> pl.DataFrame:
    """Marks rows that name a file, whose content is read later, as having content."""
    for name in _named(table):
        named = pl.col(f"{name}_url").is_not_null()
        marked = pl.when(named).then(pl.lit(b"")).otherwise(pl.col(name))
        table = table.with_columns(marked.alias(name))
    return table
