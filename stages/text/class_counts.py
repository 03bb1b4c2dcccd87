"""How many training rows each label of each task has, from counts that Beam combines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from pipelines.contracts.tasks import Task

Counts = dict[str, dict[str, int]]
"""Task to label to rows."""


def class_counts(table: pl.DataFrame, tasks: Mapping[str, Task]) -> Counts:
    """Counts of the training rows of one shard, for tasks with labels."""
    counts: Counts = {}
    train = table.filter(split="train").group_by("task", "reference").len()
    for task, label, count in train.iter_rows():
        if tasks[task].labels:
            counts.setdefault(task, {})[label] = count
    return counts


def merged_counts(parts: Iterable[Counts]) -> Counts:
    """The summed counts of several parts; associative, and always in the same order, so Beam can
    combine with it."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for task, counts in part.items():
            totals.setdefault(task, Counter()).update(counts)
    return {task: dict(sorted(totals[task].items())) for task in sorted(totals)}
