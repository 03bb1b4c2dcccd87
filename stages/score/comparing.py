"""Two sets of scores side by side: the same segments, paired tests, and what was said anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipelines.contracts import Comparison, Score
from stages.score.segments import TaskScoring, read_segments
from stages.score.significance import compare
from stages.score.statistics import Statistic

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store.artifacts import Artifact


def compared(artifact: Artifact, baseline: Artifact) -> list[Comparison]:
    """One entry for each task, split, slice and metric that both have."""
    if "scoring" not in baseline.properties:
        return []  # Scored by a version that did not keep what it takes.
    ours, theirs = _scores(artifact), _scores(baseline)
    signatures = {_key(score): score.signature for score in theirs}
    common = [score for score in ours if signatures.get(_key(score)) == score.signature]
    tasks = {score.task: scoring_of(artifact, score.task) for score in common}
    return beside(common, read_segments(artifact.folder), read_segments(baseline.folder), tasks)


def beside(
    scores: Sequence[Score],
    segments: pl.DataFrame,
    others: pl.DataFrame,
    tasks: Mapping[str, TaskScoring],
    system: str | None = None,
) -> list[Comparison]:
    """Every score on the segments of both: `segments` are ours, `others` the baseline's.

    Args:
        scores: by task, split and slice, all metrics of one after the other.
        tasks: how each task was scored.
        system: the name of the other system, where it is no run.
    """
    metrics = {score.metric for score in scores}
    both = segments.join(
        others.select("task", "split", "asked", "said", *metrics),
        on=["task", "split", "asked"],
        suffix="_baseline",
    )
    found: list[Comparison] = []
    for (task, split, slice), group in groupby(
        scores, lambda score: (score.task, score.split, score.slice)
    ):
        cut = {"task": task, "split": split, **(slice or {})}
        facts = {"task": task, "split": split, "slice": slice, "n": segments.filter(**cut).height}
        if system is not None:
            facts["system"] = system
        names = [score.metric for score in group]
        found += _entries(facts, both.filter(**cut), tasks[task], names)
    return found


def _entries(
    facts: Mapping[str, Any], rows: pl.DataFrame, scoring: TaskScoring, names: list[Any]
) -> Iterator[Comparison]:
    if rows.is_empty():
        return
    measures: dict[str, Statistic] = {name: scoring.statistic(name) for name in names}
    one, other = (
        {
            name: measure.unpacked(rows[name + suffix].to_numpy())
            for name, measure in measures.items()
        }
        for suffix in ("", "_baseline")
    )
    changed = int((rows["said"] != rows["said_baseline"]).sum())
    for name, result in compare(measures, one, other).items():
        yield Comparison(
            **facts,
            common=rows.height,
            changed=changed,
            metric=name,
            value=result.value,
            baseline=result.baseline,
            difference=result.value - result.baseline,
            ci95=result.ci95,
            p=result.p,
            p_bootstrap=result.p_bootstrap,
            p_randomisation=result.p_randomisation,
        )


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
