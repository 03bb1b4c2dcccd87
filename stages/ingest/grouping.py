"""Second step of ingest: drops repeated rows among those of one source, bucket by bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.running.beam_jobs import Ticks
from stages.ingest.options import Deduplicate
from stages.ingest.parsing import normalized_key
from stages.rows.batches import Batches
from stages.rows.files import sizes_of
from stages.rows.rejects import RejectFile
from stages.rows.shards import write_table

DUPLICATES = ("duplicate", "near duplicate")
"""Reject reasons that do not count as bad data."""
SAMPLE = 64
"""Ids of a bucket that are looked at to cut the shards into ranges."""


@dataclass(frozen=True)
class Bucket:
    """The rows whose groups are in one range of hashes."""

    number: int

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


@dataclass(frozen=True)
class GroupedBucket:
    """What became of a bucket."""

    rows: int
    bytes: int
    """In memory."""
    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    ids: list[str]
    """A sample."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class Grouping:
    """The function that deduplicates a bucket."""

    def __init__(
        self,
        folder: Path,
        parsed: Batches,
        shards: int,
        duplicates: Deduplicate,
        own_ids: bool,
    ) -> None:
        """
        Args:
            parsed: the rows by bucket, in the order that the user gave.
            own_ids: whether the ids are the user's.
        """
        self.folder, self.parsed, self.shards = folder, parsed, shards
        self.duplicates, self.own_ids = duplicates, own_ids

    def path(self, bucket: Bucket) -> Path:
        return self.folder / f"grouped-{bucket.name}.parquet"

    def rejects(self, bucket: Bucket) -> Path:
        return self.folder / f"rejects-2-{bucket.name}.arrow"

    def __call__(self, bucket: Bucket, ticks: Ticks) -> GroupedBucket:
        rejects = RejectFile(self.rejects(bucket), self.shards)
        table = self.parsed.read(bucket.number)
        ticks(1)
        if table is None:
            return GroupedBucket(0, 0, {}, [], [], {})
        rank = {"test": 0, "valid": 1, "train": 2}
        ranked = pl.col("split").replace_strict(rank, default=None, return_dtype=pl.Int64)
        # Of repeated rows, one in test or valid is kept; otherwise the one that was read first.
        table = table.sort(ranked.fill_null(1), "number", "line", maintain_order=True)
        # If files were given for each split, a source can be in two of them.
        best = ranked.min().over("group")
        reasons = [pl.when(ranked > best).then(pl.lit("source is in another split"))]
        if self.duplicates != "none":
            repeated = ~pl.struct("source", "target").is_first_distinct()
            reasons.append(pl.when(repeated).then(pl.lit("duplicate")))
        if self.duplicates == "normalized":
            pairs = table.select("group", "target").iter_rows()
            keys = [f"{group}{normalized_key(target)}" for group, target in pairs]
            near = ~pl.Series(keys, dtype=pl.String).is_first_distinct()
            reasons.append(pl.when(near).then(pl.lit("near duplicate")))
        table = table.with_columns(reason=pl.coalesce(reasons))
        if self.duplicates == "none" and not self.own_ids:
            nth = pl.col("id").cum_count().over("id")
            again = pl.concat_str(pl.col("id"), pl.lit("-"), nth.cast(pl.String))
            table = table.with_columns(pl.when(nth > 1).then(again).otherwise("id").alias("id"))
        remaining = table.filter(pl.col("reason").is_null()).drop("reason")
        rejects.add_rows(table.filter(pl.col("reason").is_not_null()), "ingest")
        write_table(remaining, self.path(bucket))
        step = max(1, len(remaining) // SAMPLE)
        ids = remaining["id"].gather_every(step).head(SAMPLE).to_list()
        size = int(remaining.estimated_size())
        batches = rejects.close()
        files = sizes_of(self.path(bucket), self.rejects(bucket))
        return GroupedBucket(len(remaining), size, rejects.counts, batches, ids, files)
