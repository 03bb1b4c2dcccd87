"""Two sets of scores side by side: the same segments, paired tests, and what was said anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from stages.score.segments import TaskScoring, read_segments
from stages.score.significance import compare
from stages.score.statistics import Statistic

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store.artifacts import Artifact


def compared(artifact: Artifact, baseline: Artifact) -> list[dict[str, Any]]:
    """One entry for each task, split, slice and metric that both have."""
    if "scoring" not in baseline.properties:
        return []  # Scored by a version that did not keep what it takes.
    ours, theirs = _scores(artifact), _scores(baseline)
    signatures = {_key(score): score["signature"] for score in theirs}
    common = [score for score in ours if signatures.get(_key(score)) == score["signature"]]
    tasks = {score["task"]: scoring_of(artifact, score["task"]) for score in common}
    return beside(common, read_segments(artifact.folder), read_segments(baseline.folder), tasks)


def beside(
    scores: Sequence[Mapping[str, Any]],
    segments: pl.DataFrame,
    others: pl.DataFrame,
    tasks: Mapping[str, TaskScoring],
) -> list[dict[str, Any]]:
    """Every score on the segments of both: `segments` are ours, `others` the baseline's.

    Args:
        scores: by task, split and slice, all metrics of one after the other.
        tasks: how each task was scored.
    """
    metrics = {score["metric"] for score in scores}
    both = segments.join(
        others.select("task", "split", "asked", "said", *metrics),
        on=["task", "split", "asked"],
        suffix="_baseline",
    )
    found: list[dict[str, Any]] = []
    for (task, split, slice), group in groupby(
        scores, lambda score: (score["task"], score["split"], score["slice"])
    ):
        cut = {"task": task, "split": split, **(slice or {})}
        facts = {"task": task, "split": split, "slice": slice, "n": segments.filter(**cut).height}
        names = [score["metric"] for score in group]
        found += _entries(facts, both.filter(**cut), tasks[task], names)
    return found


def _entries(
    facts: Mapping[str, Any], rows: pl.DataFrame, scoring: TaskScoring, names: list[Any]
) -> Iterator[dict[str, Any]]:
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
        yield {
            **facts,
            "common": rows.height,
            "changed": changed,
            "metric": name,
            "value": result.value,
            "baseline": result.baseline,
            "difference": result.value - result.baseline,
            "ci95": list(result.ci95),
            "p": result.p,
            "p_bootstrap": result.p_bootstrap,
            "p_randomisation": result.p_randomisation,
        }


def _scores(artifact: Artifact) -> list[dict[str, Any]]:
    text = (artifact.folder / "scores.json").read_text(encoding="utf-8")
    return [score for score in json.loads(text) if not score.get("baseline")]


def _key(score: Mapping[str, Any]) -> tuple[Any, ...]:
    slice = json.dumps(score["slice"], sort_keys=True)
    return score["task"], score["split"], slice, score["metric"]


def scoring_of(artifact: Artifact, task: str) -> TaskScoring:
    facts = artifact.properties["scoring"][task]
    return TaskScoring(
        tuple(facts["metrics"]),
        facts["tokenizer"],
        tuple(facts["labels"]),
        tuple(facts["references"]),
    )
