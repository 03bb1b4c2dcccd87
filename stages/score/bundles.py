"""What resampling draws: the segments of a task, split and slice, or bundles of several of them.

Time and memory of intervals and paired tests stay the same however many segments there are. Up to
`MOST_BUNDLES`, each segment is drawn by itself, and the results are sacreBLEU's own. Of more,
consecutive ones are added and drawn together (ids are hashes, so neighbours have nothing to do with
each other). That is the bootstrap of blocks (Künsch, 1989): for independent segments, a sum of
drawn bundles has the same variance as a sum of drawn segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import polars as pl

    from stages.score.statistics import Statistic

MOST_BUNDLES = 50_000
TOGETHER = 400_000
"""Bundles that are gathered in one reading of the segments."""


class Place(NamedTuple):
    """Where a score belongs."""

    task: str
    split: str
    slice: tuple[tuple[str, str], ...]
    """Columns with their values, in the order of the columns' names; empty for the whole."""

    @classmethod
    def of(cls, task: str, split: str, slice: Mapping[str, str] | None) -> Place:
        return cls(task, split, tuple(sorted((slice or {}).items())))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.slice)


def by_place(
    table: pl.DataFrame, columns: Iterable[tuple[str, ...]]
) -> Iterator[tuple[Place, pl.DataFrame]]:
    """The segments of every place; a segment without a value is in no slice by that column.

    Args:
        columns: those of each slice; none for the whole.
    """
    for names in columns:
        if not set(names) <= set(table.columns):
            continue
        complete = table.drop_nulls(list(names)) if names else table
        for values, part in complete.group_by("task", "split", *names, maintain_order=True):
            task, split, *cut = map(str, values)
            yield Place(task, split, tuple(zip(names, cut, strict=True))), part


class Bundles:
    """The statistics of a place's bundles, for every metric; segments are added in their order."""

    def __init__(self, measures: Mapping[str, Statistic], segments: int) -> None:
        self.measures = measures
        self.size = max(1, -(-segments // MOST_BUNDLES))
        self.parts: dict[str, list[Any]] = {name: [] for name in measures}

    def add(self, segments: pl.DataFrame, suffix: str = "") -> None:
        """
        Args:
            segments: with a column for each metric, whose name ends with the suffix.
        """
        for name, measure in self.measures.items():
            rows = measure.unpacked(segments[name + suffix].to_numpy())
            parts = self.parts[name]
            if self.size == 1:
                parts.append(rows)
                continue
            # The last part is the beginning of a bundle.
            rows = stacked([parts.pop(), rows]) if parts else rows
            whole = rows.shape[0] // self.size * self.size
            parts += [added(rows[:whole], self.size), rows[whole:]]

    def statistics(self) -> dict[str, Any]:
        """By metric (bundles, statistics), sparse where most are 0."""
        if self.size == 1:
            return {name: stacked(parts) for name, parts in self.parts.items()}
        return {
            name: stacked([*parts[:-1], added(parts[-1], self.size)])
            for name, parts in self.parts.items()
        }


def stacked(parts: Sequence[Any]) -> Any:
    """Parts (some rows, columns) as one."""
    from scipy.sparse import issparse, vstack

    return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


def added(rows: Any, size: int) -> Any:
    """The sums of every `size` rows (rows, columns), dense or sparse; the last may be of fewer."""
    from scipy.sparse import csr_array

    count = rows.shape[0]
    numbers = np.arange(count)
    shape = -(-count // size), count
    return csr_array((np.ones(count), (numbers // size, numbers)), shape=shape) @ rows


T = TypeVar("T")


def in_passes(items: Sequence[T], segments: Callable[[T], int]) -> Iterator[list[T]]:
    """Items together, as many as have `TOGETHER` bundles; at least one.

    Args:
        segments: how many an item has.
    """
    chosen: list[T] = []
    count = 0
    for item in items:
        bundles = min(MOST_BUNDLES, segments(item))
        if chosen and count + bundles > TOGETHER:
            yield chosen
            chosen, count = [], 0
        chosen.append(item)
        count += bundles
    if chosen:
        yield chosen
