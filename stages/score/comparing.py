"""Compares two sets of scores: the same segments, paired tests, and how many outputs changed."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, cast

import polars as pl
from pyarrow import parquet

from pipelines.contracts.scores import Comparison, Score
from pipelines.store.shared import SharedPath
from stages.measures.bundles import Bundles, Place, by_place, in_passes
from stages.measures.significance import compare
from stages.rows.batches import Batches, BatchFile
from stages.score.segments import TaskScoring, read_segments

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact
    from stages.measures.metrics import MetricName
    from stages.measures.statistics import Statistic

BUCKET_ROWS = 100_000
"""Segments of one side that are compared at a time."""
KEYS = ["task", "split", "asked"]
PLACE = "place among ours"


def compared(artifact: Artifact, baseline: Artifact) -> list[Comparison]:
    """One entry for each task, split, slice and metric that both have."""
    if "scoring" not in baseline.properties:
        return []  # Scored by a version that did not store what this needs.
    ours, theirs = _scores(artifact), _scores(baseline)
    signatures = {_key(score): score.signature for score in theirs}
    common = [score for score in ours if signatures.get(_key(score)) == score.signature]
    tasks = {score.task: scoring_of(artifact, score.task) for score in common}
    return beside(common, artifact.folder, baseline.folder, tasks)


class Compared:
    """The segments that two systems have in common at a place."""

    def __init__(self, scores: Sequence[Score], scoring: TaskScoring) -> None:
        """
        Args:
            scores: one for each metric.
        """
        self.place = Place.of(scores[0].task, scores[0].split, scores[0].slice)
        self.slice = scores[0].slice
        self.expected = scores[0].n
        measures: dict[str, Statistic] = {
            score.metric: scoring.statistic(cast("MetricName", score.metric)) for score in scores
        }
        self.measures = measures
        self.ours, self.theirs = Bundles(measures), Bundles(measures)
        self.n = self.common = self.changed = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Segments of ours, with what the other system said where it has them too."""
        both = rows.filter(pl.col("said_baseline").is_not_null())
        self.n += len(rows)
        self.common += len(both)
        self.changed += int((both["said"] != both["said_baseline"]).sum())
        if len(both):
            places = both[PLACE].to_numpy()
            self.ours.add(both, places=places)
            self.theirs.add(both, "_baseline", places)

    def entries(self, system: str | None) -> Iterator[Comparison]:
        if not self.common:
            return
        tests = compare(self.measures, self.ours.statistics(), self.theirs.statistics())
        for metric, test in tests.items():
            if math.isnan(test.value) or math.isnan(test.baseline):
                continue  # the share of wishes met, where no common row has one
            entry = Comparison(
                task=self.place.task,
                split=self.place.split,
                slice=self.slice,
                n=self.n,
                common=self.common,
                changed=self.changed,
                metric=metric,
                value=test.value,
                baseline=test.baseline,
                difference=test.value - test.baseline,
                ci95=test.ci95,
                p=test.p,
                p_bootstrap=test.p_bootstrap,
                p_randomisation=test.p_randomisation,
            )
            yield entry if system is None else entry.model_copy(update={"system": system})


def beside(
    scores: Sequence[Score],
    ours: Path,
    theirs: Path,
    tasks: Mapping[str, TaskScoring],
    system: str | None = None,
) -> list[Comparison]:
    """Compares scores on the segments that two folders of scores have in common.

    Args:
        scores: grouped by task, split and slice, with all metrics of a group one after the other.
        tasks: how each task was scored.
        system: the name of the other system, if it is not a run.
    """
    groups = [
        Compared(list(group), tasks[task])
        for (task, _, _), group in groupby(
            scores, lambda score: (score.task, score.split, score.slice)
        )
    ]
    metrics = {score.metric for score in scores}
    entries: list[Comparison] = []
    with tempfile.TemporaryDirectory() as scratch:
        pairs = paired(ours, theirs, metrics, Path(scratch))
        for chosen in in_passes(groups, lambda group: group.expected):
            places = {group.place: group for group in chosen}
            columns = dict.fromkeys(place.columns for place in places)
            for rows in pairs():
                for place, part in by_place(rows, columns):
                    if place in places:
                        places[place].add(part)
            entries += [entry for group in chosen for entry in group.entries(system)]
    return entries


def paired(
    ours: Path, theirs: Path, metrics: set[str], scratch: Path
) -> Callable[[], Iterator[pl.DataFrame]]:
    """What reads our segments, some at a time, with the other system's columns beside them, whose
    names end with `_baseline` and which are null where it does not have the segment. The column
    `PLACE` has the segment's number among ours.

    Args:
        scratch: where many segments are put, in buckets by their hash.
    """

    def joined(left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
        known = [name for name in right.columns if name in metrics]
        # Of which of several segments another is asked, nobody knows: pieces of a sound had the
        # same hash once.
        right = right.select(*KEYS, "said", *known).unique(KEYS, keep="none")
        return left.join(right, on=KEYS, how="left", suffix="_baseline", maintain_order="left")

    sizes = [
        sum(parquet.read_metadata(path).num_rows for path in folder.glob("segments/*"))
        for folder in (ours, theirs)
    ]
    buckets = -(-max(sizes) // BUCKET_ROWS)
    if buckets <= 1:
        left, right = (pl.concat(_numbered(folder), how="diagonal") for folder in (ours, theirs))
        whole = joined(left, right)
        return lambda: iter([whole])
    lefts = _in_buckets(ours, buckets, scratch / "ours")
    rights = _in_buckets(theirs, buckets, scratch / "theirs")

    def pairs() -> Iterator[pl.DataFrame]:
        for bucket in range(buckets):
            left, right = lefts.read(bucket), rights.read(bucket)
            if left is not None and right is not None:
                yield joined(left, right)
            elif left is not None:
                yield left.with_columns(said_baseline=pl.lit(None, pl.String))

    return pairs


def _numbered(folder: Path) -> Iterator[pl.DataFrame]:
    before = 0
    for segments in read_segments(folder):
        yield segments.with_row_index(PLACE, before)
        before += len(segments)


def _in_buckets(folder: Path, buckets: int, scratch: Path) -> Batches:
    files = {}
    for number, segments in enumerate(_numbered(folder)):
        file = BatchFile(scratch / f"{number}.arrow")
        numbers = [int(asked[:8], 16) % buckets for asked in segments["asked"]]
        file.add_parted(segments, pl.Series(numbers, dtype=pl.Int64))
        files[SharedPath.of(file.path)] = file.close()
    return Batches(files)


def _scores(artifact: Artifact) -> list[Score]:
    return [score for score in artifact.scores() if score.own]


def _key(score: Score) -> tuple[str, ...]:
    return score.task, score.split, json.dumps(score.slice, sort_keys=True), score.metric


def scoring_of(artifact: Artifact, task: str) -> TaskScoring:
    facts = artifact.properties["scoring"][task]
    return TaskScoring(
        tuple(facts["metrics"]),
        facts["tokenizer"],
        tuple(facts["labels"]),
        tuple(facts["references"]),
    )
