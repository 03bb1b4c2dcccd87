"""Records from a stage other than ingest: does for its rows what ingest does at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.contracts.tasks import in_json
from pipelines.stage import Context, Result
from stages.rows.rejects import Reject, write_rejects
from stages.rows.shards import content_hash, count_splits, write_records
from stages.rows.tasks import task_of

if TYPE_CHECKING:
    import polars as pl


def row_id(task: str, target: str, *sources: str | bytes | None) -> str:
    """The id of a row: a hash of its content."""
    parts = [part.hex() if isinstance(part, bytes) else part or "" for part in sources]
    return content_hash(task, *parts, target)


@dataclass(frozen=True)
class TaskOptions:
    """What a user says of a task, see `stages.rows.tasks.task_of`."""

    languages: Mapping[str, str] = field(default_factory=dict)
    labels: bool | list[str] = False


def publish_records(
    context: Context,
    table: pl.DataFrame,
    tasks: Mapping[str, TaskOptions],
    shards: int,
    rejects: Sequence[Reject] = (),
) -> Result:
    """Writes rows as a records artifact.

    Args:
        table: see `stages.rows.shards.write_records`.
        tasks: what the user says of each.
        rejects: rows that were left out.
    """
    for name, options in tasks.items():
        if not isinstance(options, TaskOptions):
            raise TypeError(f"task {name!r} must be given as TaskOptions, not {options!r}")
    write_records(table, context.output, shards)
    counts = write_rejects(rejects, context, shards)
    splits = count_splits(context.output)
    context.progress.say(
        "splits: " + ", ".join(f"{name} {count:,}" for name, count in splits.items())
    )
    described = {
        name: task_of(context.output, name, options.languages, options.labels)
        for name, options in tasks.items()
    }
    return Result(
        rows_in=len(table) + sum(counts.values()),
        rows=len(table),
        rejected=counts,
        properties={"tasks": in_json(described), "splits": splits, "shards": shards},
    )
