"""How many training rows each label of each task has, counted by a Beam CombineFn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam

if TYPE_CHECKING:
    import polars as pl

Counts = dict[str, dict[str, int]]
"""Task to label to rows."""


def class_counts(table: pl.DataFrame, tasks: Mapping[str, Any]) -> Counts:
    """Of the training rows of one shard, for tasks with labels."""
    found: Counts = {}
    train = table.filter(split="train").group_by("task", "reference").len()
    for task, label, count in train.iter_rows():
        if tasks[task]["labels"]:
            found.setdefault(task, {})[label] = count
    return found


def merged_counts(parts: Iterable[Counts]) -> Counts:
    """The counts of several parts; associative, and in one order whatever theirs."""
    found: dict[str, Counter[str]] = {}
    for part in parts:
        for task, counts in part.items():
            found.setdefault(task, Counter()).update(counts)
    return {task: dict(sorted(found[task].items())) for task in sorted(found)}


class MergeCounts(beam.CombineFn):  # type: ignore[misc]
    """Adds `Counts`; partial results merge in any order to the same."""

    def create_accumulator(self) -> Counts:
        return {}

    def add_input(self, accumulator: Counts, element: Counts) -> Counts:
        return merged_counts([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Counts]) -> Counts:
        return merged_counts(accumulators)

    def extract_output(self, accumulator: Counts) -> Counts:
        return accumulator
