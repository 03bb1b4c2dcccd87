"""Scoring in Beam: statistics of batches of segments, summed by a CombineFn.

Apart from `stages.score`, so that planning a pipeline imports no Beam.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl

from pipelines.beam import Item, tick
from stages.rows import write_table
from stages.statistics import MetricName, statistic

Key = tuple[str, str, str]
"""Task, split, metric."""
BATCH = 1000
"""Segments that one worker scores at a time."""


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

    def __init__(self, metrics: Sequence[MetricName], tokenizer: str, folder: Path) -> None:
        self.metrics, self.tokenizer, self.folder = list(metrics), tokenizer, folder

    def __call__(self, item: Item) -> Iterator[tuple[Key, tuple[int, list[float]]]]:
        table = pl.read_parquet(item["path"]).slice(item["start"], BATCH)
        kept = table.select("id", "task", "split")
        for metric in self.metrics:
            columns = {name: table[name].to_list() for name in table.columns}
            with without_garbage_collection():
                rows = statistic(metric, self.tokenizer).segments(columns)
            kept = kept.with_columns(pl.Series(metric, rows.tolist(), dtype=pl.List(pl.Float64)))
            for (task, split), part in kept.group_by("task", "split"):
                summed = np.array(part[metric].to_list()).sum(axis=0)
                yield (str(task), str(split), metric), (len(part), summed.tolist())
        write_table(kept, self.folder / f"{item['name']}.parquet")
        tick(item, len(table))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """sacreBLEU makes millions of small objects and no cycles; looking for some took a tenth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class WriteSums:
    """Writes the sums of one key as JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, keyed: tuple[Key, tuple[int, list[float]]]) -> None:
        (task, split, metric), (count, total) = keyed
        facts = {"task": task, "split": split, "metric": metric, "n": count, "total": total}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{task}.{split}.{metric}.json"
        path.write_text(json.dumps(facts), encoding="utf-8")


def scoring_job(
    pipeline: beam.Pipeline, items: Sequence[Item], batches: BatchStatistics, sums: WriteSums
) -> Any:
    return (
        pipeline
        | "Batches" >> beam.Create(items)
        | "Spread" >> beam.Reshuffle()
        | "Statistics" >> beam.FlatMap(batches)
        | "Sum" >> beam.CombinePerKey(SumStatistics())
        | "Write" >> beam.Map(sums)
    )
