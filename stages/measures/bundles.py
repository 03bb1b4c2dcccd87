"""What resampling draws: the segments of a task, split and slice, or bundles of several of them.

Time and memory of intervals and paired tests stay the same however many segments there are. Up to
`MOST_BUNDLES`, each segment is drawn by itself, and the results are sacreBLEU's own. Of more,
consecutive ones are added and drawn together: two, four, and so on, so that there are always at
least half as many. That is the bootstrap of blocks (Künsch, 1989): for independent segments, a sum
of drawn bundles has the same variance as a sum of drawn segments; where neighbours depend on each
other, as sentences of a document with ids of the user's own, it is wider, as it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import polars as pl

    from stages.measures.statistics import Statistic

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

    def __init__(self, measures: Mapping[str, Statistic]) -> None:
        self.measures = measures
        self.size = 1
        """Segments in a bundle."""
        self.count = 0
        """Bundles that are whole."""
        self.parts: dict[str, list[Any]] = {name: [] for name in measures}
        self.begun = 0
        """Segments in the bundle that is not whole yet."""
        self.rest: dict[str, Any] = {}
        """Their sum, as one row."""
        self.places: list[np.ndarray] = []

    def add(
        self, segments: pl.DataFrame, suffix: str = "", places: np.ndarray | None = None
    ) -> None:
        """
        Args:
            segments: with a column for each metric, whose name ends with the suffix.
            places: numbers (segments,) in the order of which single segments are drawn; the order
                in which they are added if none are given.
        """
        rows = {
            name: measure.unpacked(segments[name + suffix].to_numpy())
            for name, measure in self.measures.items()
        }
        if places is not None and self.size == 1:
            self.places.append(places)
        count = len(segments)
        if self.begun:
            count -= self._complete(rows, count)
        whole = count // self.size
        if whole:
            self.count += whole
            for name in self.measures:
                self.parts[name].append(added(rows[name][: whole * self.size], self.size))
                rows[name] = rows[name][whole * self.size :]
        if count % self.size:
            self.begun = count % self.size
            self.rest = {name: added(each, self.begun) for name, each in rows.items()}
        while self.count > MOST_BUNDLES:
            self._double()

    def _complete(self, rows: dict[str, Any], count: int) -> int:
        """Takes the first segments for the bundle that is not whole yet; returns how many."""
        taken = min(self.size - self.begun, count)
        self.begun += taken
        for name in self.measures:
            self.rest[name] = self.rest[name] + added(rows[name][:taken], taken)
            rows[name] = rows[name][taken:]
        if self.begun == self.size:
            self.count, self.begun = self.count + 1, 0
            for name in self.measures:
                self.parts[name].append(self.rest[name])
        return taken

    def _double(self) -> None:
        """Puts every two bundles together."""
        pairs, odd = divmod(self.count, 2)
        for name, parts in self.parts.items():
            rows = stacked(parts)
            self.parts[name] = [added(rows[: 2 * pairs], 2)]
            if odd:
                last = rows[2 * pairs :]
                self.rest[name] = last + self.rest[name] if self.begun else last
        self.begun += odd * self.size
        self.count, self.size, self.places = pairs, 2 * self.size, []

    def statistics(self) -> dict[str, Any]:
        """By metric (bundles, statistics), sparse where most are 0."""
        order = np.argsort(np.concatenate(self.places), kind="stable") if self.places else None
        collected = {}
        for name, parts in self.parts.items():
            rows = stacked([*parts, self.rest[name]] if self.begun else parts)
            collected[name] = rows if order is None else rows[order]
        return collected


def stacked(parts: Sequence[Any]) -> Any:
    """Parts (some rows, columns) as one."""
    from scipy.sparse import issparse, vstack

    return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


def added(rows: Any, size: int) -> Any:
    """The sums of every `size` rows (rows, columns), dense or sparse."""
    from scipy.sparse import csr_array

    if size == 1:
        return rows
    count = rows.shape[0]
    numbers = np.arange(count)
    shape = count // size, count
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
