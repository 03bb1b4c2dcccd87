"""What `ingest` does, in two Beam jobs.

The first parses pieces of files and groups rows with the same source, where duplicates are dropped
and each group gets one split. The second sends rows to the shard of their id. Elements are Arrow
tables, never single rows.
"""

from __future__ import annotations

import polars as pl

from pipelines.contracts.tasks import in_json
from pipelines.stage import Context, Result
from stages.ingest.grouping import DUPLICATES, Grouping, parse_job
from stages.ingest.options import ROW_COLUMNS, IngestConfig
from stages.ingest.placement import Placement, choose_groups, place_job
from stages.ingest.units import list_units
from stages.rows.rejects import check_rejected, write_rejected
from stages.rows.shards import count_splits
from stages.rows.tasks import task_of


def ingest(config: IngestConfig, context: Context) -> Result:
    """Writes the records of all sources."""
    units = list_units(config, context.base)
    folder = context.scratch / "groups"
    if not (context.scratch / "parsed").exists():
        context.progress.say(f"reading {len(units)} piece(s) of files")
        grouping = Grouping(
            config.shards,
            config.task,
            config.deduplicate,
            "id" in config.columns,
            config.labels if isinstance(config.labels, list) else [],
            config.max_file_bytes,
            str(folder),
        )
        context.beam.run(lambda pipeline: parse_job(pipeline, units, grouping))
        (context.scratch / "parsed").touch()
    chosen = choose_groups(sorted(folder.glob("rows-*.parquet")), config.split)
    placement = Placement(
        chosen,
        config.split,
        str(context.output),
        str(folder),
        config.shards,
        [name for name in config.columns if name not in ROW_COLUMNS],
    )
    groups = sorted(str(path) for path in folder.glob("rows-*.parquet"))
    context.beam.run(lambda pipeline: place_job(pipeline, groups, placement))
    rejects = [pl.read_parquet(path) for path in sorted(folder.glob("rejected-*.parquet"))]
    rejected = write_rejected(rejects, context.output, config.shards)
    splits = count_splits(context.output)
    rows = sum(splits.values())
    read = sum(int(path.read_text()) for path in folder.glob("read-*.count"))
    total = rows + sum(rejected.values())
    check_rejected(context.stage, total, rejected, config.max_rejected, DUPLICATES)
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
