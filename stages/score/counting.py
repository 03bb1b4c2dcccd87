"""Scoring in Beam: statistics of batches of segments, summed by a CombineFn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl

from pipelines.contracts.base import Contract
from pipelines.running.beam_jobs import Ticks, without_garbage_collection
from pipelines.store.files import write_json
from pipelines.store.shared import SharedPath
from stages.measures.metrics import MetricName
from stages.rows.shards import ROW_GROUP, content_hash, write_table
from stages.score.segments import TaskScoring
from stages.score.slicing import with_slices

Key = tuple[str, str, str, str]
"""Task, split, the slice's columns and values as JSON ({} for the whole), metric."""


BATCHES = 16
"""The smallest number of batches, if there are many segments: enough for several workers to end
at the same time."""


def batch_size(total: int) -> int:
    """Segments that one worker scores at a time; depends only on their number, because the
    statistics of each batch are kept in a file."""
    return min(ROW_GROUP, 1000 * max(1, -(-total // (1000 * BATCHES))))


@dataclass(frozen=True)
class SegmentBatch:
    """Rows of a shard of predictions that one worker scores at a time."""

    name: str
    path: SharedPath
    start: int
    rows: int
    ticks: Ticks


class Sum(Contract):
    """Statistics of a metric, summed over the segments of a task, split and slice."""

    task: str
    split: str
    slice: dict[str, str] | None
    metric: MetricName
    n: int
    """Segments."""
    total: tuple[float, ...]


class SumStatistics(beam.CombineFn):  # type: ignore[misc]
    """Adds vectors of sufficient statistics, and counts the segments in them."""

    def create_accumulator(self) -> tuple[int, list[float]]:
        return 0, []

    def add_input(
        self, accumulator: tuple[int, list[float]], element: tuple[int, list[float]]
    ) -> tuple[int, list[float]]:
        return self.merge_accumulators([accumulator, element])

    def merge_accumulators(
        self, accumulators: Iterable[tuple[int, list[float]]]
    ) -> tuple[int, list[float]]:
        count, total = 0, np.zeros(0)
        for segments, values in accumulators:
            if values:
                total = np.array(values) if not len(total) else total + np.array(values)
            count += segments
        return count, total.tolist()

    def extract_output(self, accumulator: tuple[int, list[float]]) -> tuple[int, list[float]]:
        return accumulator


class BatchStatistics:
    """Statistics of every metric for one batch of segments; also kept segment by segment."""

    def __init__(
        self,
        tasks: Mapping[str, TaskScoring],
        slices: Sequence[str],
        folder: SharedPath,
        counts: SharedPath | None = None,
    ) -> None:
        """
        Args:
            counts: what `count_words` wrote, for slices by rarity.
        """
        self.tasks, self.slices, self.folder = dict(tasks), list(slices), folder
        self.counts = counts

    def __call__(self, batch: SegmentBatch) -> Iterator[tuple[Key, tuple[int, list[float]]]]:
        table = pl.scan_parquet(Path(batch.path)).slice(batch.start, batch.rows).collect()
        counts = None if self.counts is None else Path(self.counts)
        columns_used = {name for slice in self.slices for name in slice.split("+")}
        parts = []
        for (task, split), rows_of in table.group_by("task", "split", maintain_order=True):
            scoring = self.tasks[str(task)]
            part = with_slices(rows_of, columns_used, str(task), scoring.tokenizer, counts)
            free = [name for name in part.columns if name in columns_used]
            columns = Columns(part)
            wanted = [columns[name] for name in ("id", "reference", *scoring.references)]
            present = [part[name].is_not_null() for name in scoring.references]
            # Pieces of a sound have the same id: all but the first are known by their number too.
            pieces = columns["part"] if "part" in part.columns else [0] * len(part)
            segments = part.select("id", "task", "split", *free).with_columns(
                asked=pl.Series(
                    [
                        content_hash(*map(str, row), *([str(piece)] if piece else []))
                        for piece, *row in zip(pieces, *wanted, strict=True)
                    ]
                ),
                said=pl.Series([content_hash(text) for text in columns["hypothesis"]]),
                references=1 + pl.sum_horizontal(pl.lit(0, pl.Int32), *present),
            )
            for metric in scoring.metrics:
                measure = scoring.statistic(metric)
                with without_garbage_collection():
                    rows = measure.segments(columns)
                packed = measure.packed(rows).astype(np.float64)
                segments = segments.with_columns(pl.Series(metric, packed))
                for slice, chosen in sliced(part, self.slices):
                    key = json.dumps(slice, sort_keys=True, ensure_ascii=False)
                    total = rows[chosen].sum(axis=0).tolist()
                    yield (str(task), str(split), key, metric), (len(chosen), total)
            parts.append(segments)
        if parts:
            segments = pl.concat(parts, how="diagonal")
            place = self.folder / f"{batch.name}.parquet"
            write_table(segments, place.here)
            place.put()
        batch.ticks(len(table))


class Columns(dict[str, list[Any]]):
    """Columns of a table as lists, only those that are asked for."""

    def __init__(self, table: pl.DataFrame) -> None:
        super().__init__()
        self.table = table

    def __missing__(self, name: str) -> list[Any]:
        self[name] = self.table[name].to_list()
        return self[name]


def sliced(
    table: pl.DataFrame, slices: Sequence[str]
) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """All rows, then each value of each slice, with its row numbers.

    A slice is a column, or several joined by "+"; then every combination is a value.
    """
    yield {}, np.arange(len(table))
    numbered = table.with_row_index("row")
    for slice in slices:
        names = slice.split("+")
        if not set(names) <= set(table.columns):
            continue
        complete = numbered.drop_nulls(names)
        for values, part in complete.group_by(names, maintain_order=True):
            slice_values = {name: str(value) for name, value in zip(names, values, strict=True)}
            yield slice_values, part["row"].to_numpy()


class WriteSums:
    """Writes the sums of one key as JSON."""

    def __init__(self, folder: SharedPath) -> None:
        self.folder = folder

    def __call__(self, keyed: tuple[Key, tuple[int, list[float]]]) -> None:
        (task, split, slice, metric), (count, total) = keyed
        summed = Sum(
            task=task,
            split=split,
            slice=json.loads(slice) or None,
            metric=metric,
            n=count,
            total=tuple(total),
        )
        # Values of a slice can be any text, a file name cannot.
        place = self.folder / f"{content_hash(*keyed[0])}.json"
        place.here.parent.mkdir(parents=True, exist_ok=True)
        write_json(place.here, summed.to_json())
        place.put()


def scoring_job(
    pipeline: beam.Pipeline,
    items: Sequence[SegmentBatch],
    batches: BatchStatistics,
    sums: WriteSums,
) -> Any:
    return (
        pipeline
        | "Batches" >> beam.Create(items)
        | "Statistics" >> beam.FlatMap(batches)
        | "Sum" >> beam.CombinePerKey(SumStatistics())
        | "Write" >> beam.Map(sums)
    )
