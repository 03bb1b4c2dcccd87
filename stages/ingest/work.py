"""What `ingest` does, in four Beam jobs.

Pieces of files are parsed; rows with the same source meet in a bucket, where duplicates are
dropped; each group of rows gets one split; rows go to the shard of their id. Between the jobs, rows
are in files in scratch, cut by what the next job reads: so no worker holds more than a bucket or a
range of a shard, however large the input is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from model.modalities.known import MEDIA
from pipelines.contracts.tasks import in_json
from pipelines.stage import Context, Result
from pipelines.store.remembered import MISSING
from pipelines.store.shared import SharedPath
from pipelines.store.sources import SourceError, source_changed
from stages.ingest.grouping import DUPLICATES, Bucket, GroupedBucket, Grouping, Keys
from stages.ingest.opened import Unit
from stages.ingest.options import IngestConfig
from stages.ingest.parsing import (
    ParsedUnit,
    Parsing,
    bucket_of,
    content_digest_of,
    first_examples,
    media_of,
    total_buckets,
)
from stages.ingest.placement import (
    PlacedBucket,
    Shard,
    Splitting,
    Writing,
    WrittenShard,
    choose_groups,
    range_ends,
    reference_columns,
)
from stages.ingest.units import list_units
from stages.rows.batches import Batches, BatchFile, IndexedBatches
from stages.rows.rejects import check_rejected, gather_rejects, summed
from stages.rows.shards import link_files, row_shards, table_groups, write_table
from stages.rows.tasks import task_of

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact

BUCKET_BYTES = 8_000_000
"""About the bytes of a source's text in a bucket."""
RANGE_BYTES = 32_000_000
"""About the bytes of a range of a shard, in memory."""


def ingest(config: IngestConfig, context: Context, others: Sequence[Artifact] = ()) -> Result:
    """Writes the records of all sources.

    Args:
        others: records whose sources must not be in another split here.
    """
    units = list_units(config, context.base, context.outside)
    context.progress.say(f"reading {len(units)} piece(s) of files")
    shared = context.beam.shared
    scratch = shared.path(context.scratch)
    folder = scratch / "groups"
    folder.here.mkdir(exist_ok=True)
    keys = Keys(
        config.deduplicate,
        (config.languages.get("text", ""), config.languages.get("target", "")),
    )
    parsing = Parsing(
        folder,
        total_buckets(units, BUCKET_BYTES),
        config.shards,
        config.task,
        keys,
        config.labels if isinstance(config.labels, list) else [],
        config.max_file_bytes,
    )
    parsed = context.beam.map(
        "parse", units, parsing, ParsedUnit, context.scratch,
        total=sum(max(1, unit.bytes) for unit in units), unit="bytes",
    )  # fmt: skip
    _check_sources(context.outside, parsed)
    _check_broken(units, parsed, config.max_rejected, context)
    read = sum(outcome.read for outcome in parsed)
    if not any(outcome.batches for outcome in parsed):
        raise ValueError(_nothing_usable([unit.shown for unit in units], read, parsed))

    buckets = [Bucket(number) for number in range(parsing.buckets)]
    files = {
        parsing.path(unit): outcome.batches for unit, outcome in zip(units, parsed, strict=True)
    }
    grouping = Grouping(
        folder,
        Batches(files).indexed(folder / "parsed.parquet"),
        config.shards,
        keys,
        "id" in config.columns,
        groups_of(others, keys, units, parsing.buckets, folder / "apart.arrow"),
    )
    grouped = context.beam.map(
        "group", buckets, grouping, GroupedBucket, context.scratch,
        total=len(buckets), unit="buckets",
    )  # fmt: skip
    buckets = [bucket for bucket, outcome in zip(buckets, grouped, strict=True) if outcome.rows]
    tables = [grouping.path(bucket) for bucket in buckets]
    _check_files(context.outside, tables)
    groups = choose_groups(tables, config.split, bool(config.references))
    chosen = folder / "chosen.parquet"
    schema = {"group": pl.String, "split": pl.String}
    write_table(pl.DataFrame([*groups.items()], schema=schema, orient="row"), chosen.here)
    chosen.put()

    ids = [id for outcome in grouped for id in outcome.ids]
    size = sum(outcome.bytes for outcome in grouped)
    ends = range_ends(ids, size // (RANGE_BYTES * config.shards) + 1)
    splitting = Splitting(
        folder, grouping, chosen, config.split, config.shards, ends, config.references
    )
    placed = context.beam.map(
        "split", buckets, splitting, PlacedBucket, context.scratch,
        total=len(buckets), unit="buckets",
    )  # fmt: skip
    media = {name for unit in units for name in media_of(unit)}
    writing = Writing(
        scratch,
        Batches(
            {
                splitting.path(bucket): outcome.batches
                for bucket, outcome in zip(buckets, placed, strict=True)
            }
        ).indexed(folder / "placed.parquet"),
        len(ends) + 1,
        [*config.free, *reference_columns(config.references)],
        sorted(media),
        config.max_file_bytes,
    )
    shards = [Shard(number, config.shards) for number in range(config.shards)]
    written = context.beam.map(
        "write", shards, writing, WrittenShard, context.scratch, total=len(shards), unit="shards"
    )
    link_files(scratch / "rows", context.output / "rows")

    rejects: dict[SharedPath, Sequence[int]] = {}
    for unit, first in zip(units, parsed, strict=True):
        rejects[parsing.rejects(unit)] = first.rejects
    for bucket, second in zip(map(Bucket, range(parsing.buckets)), grouped, strict=True):
        rejects[grouping.rejects(bucket)] = second.rejects
    for bucket, third in zip(buckets, placed, strict=True):
        rejects[splitting.rejects(bucket)] = third.rejects
    for shard, fourth in zip(shards, written, strict=True):
        rejects[writing.rejects(shard)] = fourth.rejects
    gather_rejects(rejects, context.output, config.shards)
    rejected = summed(
        outcome.rejected for made in (parsed, grouped, placed, written) for outcome in made
    )
    splits = {
        name: sum(shard.splits.get(name, 0) for shard in written)
        for name in ("train", "valid", "test")
    }
    rows = sum(splits.values())
    examples = list(first_examples(parsed))
    total = rows + sum(rejected.values())
    check_rejected(context.stage, total, rejected, config.max_rejected, DUPLICATES, examples)
    if rows == 0:
        raise ValueError(f"no rows are left of {read} rows that were read")
    context.progress.say(
        "splits: " + ", ".join(f"{name} {count:,}" for name, count in splits.items())
    )
    languages: dict[str, str] = dict(config.languages.items())
    task = task_of(context.output, config.task, languages, config.labels)
    return Result(
        rows_in=read,
        rows=rows,
        rejected=rejected,
        properties={
            "tasks": in_json({config.task: task}),
            "splits": splits,
            "shards": config.shards,
        },
    )


def groups_of(
    others: Sequence[Artifact], keys: Keys, units: Sequence[Unit], buckets: int, place: SharedPath
) -> IndexedBatches | None:
    """Group, split, id and key of the target of every row of other records, by bucket; None if
    there are none."""
    if not others:
        return None
    media = sorted({name for unit in units for name in media_of(unit)}, key=list(MEDIA).index)
    file = BatchFile(place.here)
    for shard in (path for artifact in others for path in row_shards(artifact)):
        held = pl.read_parquet_schema(shard)
        columns = ["split", "id", "target", *(name for name in ("text", *media) if name in held)]
        for table in table_groups(shard, columns):
            groups = [
                keys.group(
                    row.get("text") or "",
                    [content_digest_of(row[name]) if row.get(name) else "" for name in media],
                )
                for row in table.iter_rows(named=True)
            ]
            rows = table.select("split", "id").with_columns(
                pl.Series("group", groups, dtype=pl.String),
                said=pl.Series(
                    [keys.target(target) for target in table["target"]], dtype=pl.String
                ),
            )
            file.add_parted(rows, bucket_of(rows["group"], buckets))
    batches = Batches({place: file.close()})
    if place.here.exists():
        place.put()
    return batches.indexed(place.parent / "apart.parquet")


def _nothing_usable(names: Sequence[str], read: int, parsed: Sequence[ParsedUnit]) -> str:
    """Why there is no row at all, with the first rejects of each reason."""
    files = list(dict.fromkeys(names))
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    if not read:
        return f"there is no row in {shown or 'the sources'}"
    examples = "\n".join(f"  {example}" for example in first_examples(parsed))
    return f"none of the {read} rows in {shown} can be used:\n{examples}"


def _check_broken(
    units: Sequence[Unit], parsed: Sequence[ParsedUnit], most: float, context: Context
) -> None:
    """Tells of every file that cannot be read to its end: nobody knows how many rows it has. Raises
    `ValueError` if their share of the files is larger than `most`."""
    files = {unit.shown for unit in units}
    broken = {
        unit.shown: outcome.unreadable[0]
        for unit, outcome in zip(units, parsed, strict=True)
        if outcome.unreadable
    }
    for place in broken.values():
        context.progress.say(f"cannot be read to its end: {place}")
    if len(broken) > most * len(files):
        examples = "".join(f"\n  {place}" for place in list(broken.values())[:3])
        raise ValueError(
            f"{len(broken)} of {len(files)} files cannot be read to their end, more than "
            f"max_rejected: {most} allows; nobody knows how many rows they have:{examples}"
        )


def _check_sources(planned: Mapping[str, str], parsed: Iterable[ParsedUnit]) -> None:
    """Raises `SourceError` if a worker lacks a file that was there for the plan."""
    for outcome in parsed:
        for name in outcome.missing:
            if planned.get(f"media {name}", planned.get(name, MISSING)) != MISSING:
                raise SourceError(
                    f"{name} was there when the run was planned, and a worker cannot find it; do "
                    "all workers have the files?"
                )


def _check_files(planned: Mapping[str, str], tables: Iterable[SharedPath]) -> None:
    """Raises `SourceError` if a file that rows name is not the one that was planned with."""
    if not planned:
        return
    for place in tables:
        path = Path(place)
        schema = pl.read_parquet_schema(path)
        for name in [column.removesuffix("_name") for column in schema if column.endswith("_name")]:
            if f"{name}_sha256" not in schema:
                continue  # a column of the user's own
            table = pl.read_parquet(path, columns=[f"{name}_name", f"{name}_sha256"]).drop_nulls()
            for file, digest in table.unique().iter_rows():
                if planned.get(f"media {file}", planned.get(file)) != digest:
                    raise source_changed(file)
