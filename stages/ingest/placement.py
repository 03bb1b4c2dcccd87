"""Second job of ingest: every row gets its split and goes to the shard of its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import polars as pl

from model.modalities.known import MEDIA
from pipelines.store.sources import read_whole
from stages.rows.rejects import as_rejected
from stages.rows.shards import (
    from_arrow,
    shard_name,
    shard_of,
    to_arrow,
    with_modalities,
    write_table,
)


def place_job(pipeline: Any, groups: list[str], placement: Placement) -> Any:
    return (
        pipeline
        | "Groups" >> beam.Create(groups)
        | "Split" >> beam.FlatMap(placement.split)
        | "By id" >> beam.GroupByKey()
        | "Write" >> beam.Map(placement.write)
    )


def choose_groups(tables: list[Path], split: Mapping[Any, int | float]) -> dict[str, str]:
    """Which groups, each of one source, make up the splits that are given as numbers of rows.

    Groups are taken in the order of their hash, test first; one that would exceed the number is
    skipped. So the choice depends only on the sources, not on how they are stored.
    """
    wanted = {name: size for name, size in split.items() if isinstance(size, int)}
    if not wanted or not tables:
        return {}
    free = pl.scan_parquet(tables).filter(pl.col("split").is_null())
    groups = free.group_by("group").len().sort("group").collect()
    chosen: dict[str, str] = {}
    for name in ("test", "valid"):
        left = wanted.get(name, 0)
        for group, count in groups.iter_rows():
            if left == 0:
                break
            if group not in chosen and count <= left:
                chosen[group] = name
                left -= count
        # Groups are not divided, so a few of the rows that were asked for may be missing.
        if left >= max(groups["len"], default=1):
            raise ValueError(
                f"split: {name}: {wanted[name]} rows were asked for, but there are not that many"
            )
    return chosen


class Placement:
    """Second job: give every row its split and write it to the shard of its id."""

    def __init__(
        self,
        chosen: Mapping[str, str],
        sizes: Mapping[Any, int | float],
        output: str,
        folder: str,
        shards: int,
        free: Sequence[str],
    ) -> None:
        shares = {name: size for name, size in sizes.items() if isinstance(size, float)}
        self.chosen, self.shares = dict(chosen), shares
        self.output, self.folder, self.shards, self.free = output, folder, shards, list(free)

    def split_of(self, group: str) -> str:
        """The split of a group: the one it was chosen for, else the one its hash falls into."""
        if group in self.chosen:
            return self.chosen[group]
        # The bucket used the first eight digits; these are independent of it.
        fraction = int(group[8:16], 16) / 2**32
        below = 0.0
        for name in ("test", "valid"):
            below += self.shares.get(name, 0.0)
            if fraction < below:
                return name
        return "train"

    def split(self, path: str) -> Iterator[tuple[int, bytes]]:

        table = pl.read_parquet(path)
        declared = table.select("split", "group").rows()
        open_groups = {group for split, group in declared if split is None}
        splits, reasons = [], []
        for split, group in declared:
            placed = self.split_of(group) if group in open_groups else split
            splits.append(split or placed)
            reasons.append(
                None if placed in (None, split or placed) else "source is in another split"
            )
        table = table.with_columns(
            pl.Series("split", splits, dtype=pl.String),
            pl.Series("reason", reasons, dtype=pl.String),
        )
        dropped = table.filter(pl.col("reason").is_not_null())
        write_table(
            as_rejected(dropped, "ingest"),
            Path(self.folder) / f"rejected-2-{Path(path).stem}.parquet",
        )
        table = table.filter(pl.col("reason").is_null()).drop("reason")
        shards = pl.Series([shard_of(id, self.shards) for id in table["id"]], dtype=pl.Int64)
        for shard in range(self.shards):
            yield shard, to_arrow(table.filter(shards == shard))

    def write(self, keyed: tuple[int, Any]) -> str:
        """Writes one shard, sorted by id; a second row of the same id is rejected."""

        shard, tables = keyed
        table = from_arrow(tables).sort("id", "number", "line", maintain_order=True)
        repeated = ~table["id"].is_first_distinct()
        dropped = table.filter(repeated).with_columns(reason=pl.lit("duplicate id"))
        write_table(
            as_rejected(dropped, "ingest"), Path(self.folder) / f"rejected-3-{shard:06d}.parquet"
        )
        table = table.filter(~repeated)
        for name in self.free:
            if name not in table.columns:
                table = table.with_columns(pl.lit(None, pl.String).alias(name))
        sources = [name for name in MEDIA if name in table.columns]
        for name in sources:
            table = table.with_columns(_read(table, name))
        names = ["id", "split", "task", "modalities", "text", *sources, "target", "position"]
        name = f"{shard_name(shard, self.shards)}.parquet"
        table = with_modalities(table).select(*names, *self.free)
        write_table(table, Path(self.output) / "rows" / name)
        return str(shard)


def _read(table: pl.DataFrame, name: str) -> pl.Series:
    """The files of a column: bytes that are in the row, or what is at its URL."""
    rows = table.select(name, f"{name}_url").iter_rows()
    files = [read_whole(url) if url else held for held, url in rows]
    return pl.Series(name, files, dtype=pl.Binary)
