"""Compares two sets of scores: the same segments, paired tests, and how many outputs changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipelines.contracts.scores import Comparison, Score
from stages.score.segments import TaskScoring, read_segments
from stages.score.significance import PairedTest, compare
from stages.score.statistics import Statistic

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store.artifacts import Artifact


def compared(artifact: Artifact, baseline: Artifact) -> list[Comparison]:
    """One entry for each task, split, slice and metric that both have."""
    if "scoring" not in baseline.properties:
        return []  # Scored by a version that did not store what this needs.
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
    """Compares scores on the segments of both: `segments` are ours, `others` the baseline's.

    Args:
        scores: grouped by task, split and slice, with all metrics of a group one after the other.
        tasks: how each task was scored.
        system: the name of the other system, if it is not a run.
    """
    metrics = {score.metric for score in scores}
    joined = segments.join(
        others.select("task", "split", "asked", "said", *metrics),
        on=["task", "split", "asked"],
        suffix="_baseline",
    )
    entries: list[Comparison] = []
    for (task, split, slice), group in groupby(
        scores, lambda score: (score.task, score.split, score.slice)
    ):
        cut = {"task": task, "split": split, **(slice or {})}
        rows = joined.filter(**cut)
        if rows.is_empty():
            continue
        n = segments.filter(**cut).height
        changed = int((rows["said"] != rows["said_baseline"]).sum())
        for metric, test in _tests(rows, tasks[task], [score.metric for score in group]).items():
            entry = Comparison(
                task=task,
                split=split,
                slice=slice,
                n=n,
                common=rows.height,
                changed=changed,
                metric=metric,
                value=test.value,
                baseline=test.baseline,
                difference=test.value - test.baseline,
                ci95=test.ci95,
                p=test.p,
                p_bootstrap=test.p_bootstrap,
                p_randomisation=test.p_randomisation,
            )
            if system is not None:
                entry = entry.model_copy(update={"system": system})
            entries.append(entry)
    return entries


def _tests(
    rows: pl.DataFrame, scoring: TaskScoring, metrics: Sequence[Any]
) -> dict[str, PairedTest]:
    """Both systems on the same rows, by metric."""
    measures: dict[str, Statistic] = {name: scoring.statistic(name) for name in metrics}
    ours, theirs = (
        {
            name: measure.unpacked(rows[name + suffix].to_numpy())
            for name, measure in measures.items()
        }
        for suffix in ("", "_baseline")
    )
    return compare(measures, ours, theirs)


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
