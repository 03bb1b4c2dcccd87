"""What `score` does with what workers counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl

from model.modalities.known import MEDIA
from pipelines.contracts import SCORES, Comparison, Score
from pipelines.running.beam_jobs import ticks_path
from pipelines.stage import Context, Inputs, Result
from pipelines.store.artifacts import Artifact
from pipelines.store.files import write_json
from stages.rows.shards import row_shards, write_table
from stages.score.comparing import beside
from stages.score.counting import BatchStatistics, WriteSums, batch_size, scoring_job
from stages.score.languages import bleu_tokenizer
from stages.score.metrics import (
    FORCED,
    LABEL_METRICS,
    LENGTH,
    NEED_PROBABILITIES,
    RARITY,
    SPOKEN,
    MetricName,
)
from stages.score.options import ScoreConfig
from stages.score.segments import TaskScoring, read_segments
from stages.score.significance import intervals
from stages.score.slicing import count_words, natural
from stages.score.statistics import CalibrationStatistic, ConfusionStatistic, has_four_words
from stages.score.systems import system_rows
from stages.score.variety import variety


def score(config: ScoreConfig, context: Context, inputs: Inputs) -> Result:
    """Writes the scores of all tasks, and what the report and later comparisons need of them."""
    (predictions,) = inputs["predictions"]
    shards = row_shards(predictions)
    columns = {name for path in shards for name in pl.read_parquet_schema(path)}
    wanted = {
        "slices": {name for slice in config.slices for name in slice.split("+")} - {LENGTH, RARITY},
        "references": set(config.references),
    }
    for option, names in wanted.items():
        if names - columns:
            raise ValueError(
                f"{option}: names {', '.join(sorted(names - columns))}; the predictions have "
                f"{', '.join(sorted(columns))}"
            )
    tasks = scoring_of_tasks(config, predictions)
    counts = None
    if inputs["records"]:
        counts = context.scratch / "words.parquet"
        tokenizers = {name: task.tokenizer for name, task in tasks.items()}
        count_words(inputs["records"], tokenizers, counts)
    batches = BatchStatistics(tasks, config.slices, context.output / "segments", counts)
    found = measured(context, "scores", shards, batches, predictions.rows)
    scores = scores_of(config, context.output, tasks, found)
    others, tested = score_systems(config, context, predictions, tasks)
    every = [score.to_json() for score in [*scores, *others]]
    write_json(context.output / SCORES, every)
    write_json(context.output / "systems.json", [entry.to_json() for entry in tested])
    facts = predictions.properties["tasks"]
    write_json(context.output / "classification.json", classification(tasks, facts, found))
    write_json(context.output / "diversity.json", diversity_of(predictions, tasks))
    for score in scores:
        if score.whole:
            context.progress.say(
                f"{score.task}: {score.metric} {score.value:.4g} ({score.signature})"
            )
    return Result(
        rows_in=predictions.rows,
        rows=counted(scores),
        properties={"scoring": {name: asdict(task) for name, task in tasks.items()}},
    )


def measured(
    context: Context, label: str, shards: Sequence[Path], batches: BatchStatistics, total: int
) -> list[dict[str, Any]]:
    """Statistics of all segments, summed in Beam, by task, split, slice and metric."""
    ticks = context.scratch / label / "ticks"
    size = batch_size(total)
    items = []
    for path in shards:
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        for start in range(0, rows, size):
            name = f"{path.stem}-{start:09d}"
            ticks_path(ticks, name).unlink(missing_ok=True)
            place = str(ticks_path(ticks, name))
            items.append(
                {"name": name, "path": str(path), "start": start, "rows": size, "ticks": place}
            )
    sums = WriteSums(context.scratch / label / "sums")
    beam = context.beam
    with beam.watch(label, ticks, total, "segments"):
        beam.run(lambda pipeline: scoring_job(pipeline, items, batches, sums))
    return read_sums(sums.folder, batches.tasks)


def counted(scores: Sequence[Score]) -> int:
    """Rows that were scored: those of the first metric of each task and split."""
    whole = {(score.task, score.split): score.n for score in reversed(scores) if score.whole}
    return sum(whole.values())


def read_sums(folder: Path, tasks: Mapping[str, TaskScoring]) -> list[dict[str, Any]]:
    """The sums that workers wrote, by task, split, slice and metric."""
    sums = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]

    def place(found: dict[str, Any]) -> tuple[Any, ...]:
        metric = tasks[found["task"]].metrics.index(found["metric"])
        slice = sorted((found["slice"] or {}).items())
        return found["task"], found["split"], [(n, natural(value)) for n, value in slice], metric

    return sorted(sums, key=place)


def classification(
    tasks: Mapping[str, TaskScoring],
    facts_of: Mapping[str, Mapping[str, Any]],
    sums: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Confusion, each label's precision, recall and F1 beside its training rows, and calibration,
    of tasks with labels."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for facts in sums:
        if facts["slice"]:
            continue
        measure = tasks[facts["task"]].statistic(facts["metric"])
        key = facts["task"], facts["split"]
        entry: dict[str, Any] = {"task": key[0], "split": key[1]}
        total = np.array(facts["total"])
        if isinstance(measure, ConfusionStatistic):
            entry["labels"] = list(measure.labels)
            entry["matrix"] = measure.matrix(total).tolist()
            training = facts_of[facts["task"]]["training_rows"]
            entry["by_label"] = [
                {**row, "training_rows": training.get(row["label"], 0)}
                for row in measure.by_label(total)
            ]
        elif isinstance(measure, CalibrationStatistic):
            entry["calibration"] = measure.bins(total)
        else:
            continue
        found[key] = {**found.get(key, {}), **entry}
    return list(found.values())


def score_systems(
    config: ScoreConfig, context: Context, predictions: Artifact, tasks: Mapping[str, TaskScoring]
) -> tuple[list[Score], list[Comparison]]:
    """The scores of other systems, and ours beside them with paired tests."""
    if not config.systems:
        return [], []
    scores: list[Score] = []
    compared: list[Comparison] = []
    ours = read_segments(context.output)
    # What a file of lines says is scored by what it says alone.
    alone = {
        name: replace(
            task,
            metrics=tuple(m for m in task.metrics if m not in (*FORCED, *NEED_PROBABILITIES)),
        )
        for name, task in tasks.items()
    }
    for number, (name, pattern) in enumerate(config.systems.items()):
        folder = context.scratch / f"system-{number}"
        paths: list[Path] = []
        total = 0
        for part in system_rows(predictions, pattern, context.base):
            paths.append(folder / "rows" / f"{len(paths):05d}.parquet")
            write_table(part, paths[-1])
            total += len(part)
        batches = BatchStatistics(alone, [], folder / "segments")
        found = measured(context, f"system-{number}", paths, batches, total)
        theirs = scores_of(config, folder, alone, found)
        scores += [score.model_copy(update={"baseline": name}) for score in theirs]
        compared += beside(theirs, ours, read_segments(folder), alone, name)
    return scores, compared


def scoring_of_tasks(config: ScoreConfig, predictions: Artifact) -> dict[str, TaskScoring]:
    """How each task is scored."""
    tasks = {}
    for task, facts in predictions.properties["tasks"].items():
        spoken = any(
            name in MEDIA and MEDIA[name].spoken
            for kind in facts["modalities"]
            for name in kind.split("+")
        )
        metrics = [
            metric
            for metric in config.metrics or get_args(MetricName)
            if (metric in LABEL_METRICS) == bool(facts["labels"])
            and (metric not in FORCED or predictions.properties["scored_references"])
            and (config.metrics or metric not in SPOKEN or spoken)
        ]
        if not metrics:
            fitting = "accuracy" if facts["labels"] else "bleu or exact_match"
            raise ValueError(
                f"metrics: has none for task {task!r}; add {fitting}, or leave metrics: out"
            )
        tokenizer = config.tokenize or bleu_tokenizer(facts["languages"].get("target"))
        further = () if facts["labels"] else tuple(config.references)
        tasks[task] = TaskScoring(tuple(metrics), tokenizer, tuple(facts["labels"]), further)
    return tasks


def scores_of(
    config: ScoreConfig, folder: Path, tasks: Mapping[str, TaskScoring], sums: list[dict[str, Any]]
) -> list[Score]:
    """The scores of all tasks, splits and slices, of segments in a folder."""
    cuts = {name for found in sums for name in found["slice"] or {}}
    metrics = {found["metric"] for found in sums}
    segments = read_segments(folder, {"task", "split", "references", *cuts, *metrics})
    kinds = Counter(
        (found["task"], found["split"], found["metric"], tuple(found["slice"]))
        for found in sums
        if found["slice"]
    )
    scores = []
    undefined = set()  # tasks and splits without BLEU; the whole comes before its slices
    for (task, split, _), group in groupby(sums, lambda s: (s["task"], s["split"], s["slice"])):
        listed = list(group)
        cut = listed[0]["slice"] or {}
        if cut and kinds[task, split, listed[0]["metric"], tuple(cut)] < 2:
            continue  # one slice is the whole
        rows = segments.filter(task=task, split=split, **cut)
        measures = {found["metric"]: tasks[task].statistic(found["metric"]) for found in listed}
        kept = {name: measure.unpacked(rows[name].to_numpy()) for name, measure in measures.items()}
        unasked = "bleu" in kept and not cut and not config.metrics
        if unasked and not has_four_words(kept["bleu"]):
            undefined.add((task, split))
        if (task, split) in undefined:
            measures.pop("bleu", None)
        ends = intervals(measures, kept) if config.intervals else {}
        numbers = rows["references"].unique()
        for found in listed:
            if found["metric"] not in measures:
                continue
            measure = measures[found["metric"]]
            scores.append(
                Score(
                    task=task,
                    split=split,
                    slice=found["slice"],
                    metric=found["metric"],
                    value=measure.score(np.array(found["total"])),
                    signature=measure.signature(numbers.item() if len(numbers) == 1 else -1),
                    n=found["n"],
                    ci95=ends[found["metric"]] if ends else None,
                )
            )
    return scores


def diversity_of(predictions: Artifact, tasks: Mapping[str, TaskScoring]) -> list[dict[str, Any]]:
    """Quality against variety, where generate drew several outputs."""
    if not predictions.properties["diversity"]:
        return []
    table = pl.read_parquet(predictions.folder / "diversity.parquet")
    return variety(table, {task: scoring.tokenizer for task, scoring in tasks.items()})
