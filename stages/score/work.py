"""What `score` does with what workers counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import polars as pl

from model.modalities.known import MEDIA
from pipelines.contracts.base import Contract, read
from pipelines.contracts.predictions import TRADEOFF_ROWS
from pipelines.contracts.scores import (
    CLASSIFICATION,
    DIVERSITY,
    SCORES,
    SYSTEMS,
    TRADEOFF,
    Classification,
    Comparison,
    Score,
    Tradeoff,
    Variety,
)
from pipelines.contracts.tasks import Task
from pipelines.registry import did_you_mean
from pipelines.running.beam_jobs import new_ticks
from pipelines.stage import Context, Inputs, Result
from pipelines.store.files import write_json
from stages.measures.bundles import Bundles, Place, by_place, in_passes
from stages.measures.metrics import (
    FORCED,
    LABEL_METRICS,
    LENGTH,
    NEED_PROBABILITIES,
    RARITY,
    SPOKEN,
    MetricName,
    bleu_tokenizer,
)
from stages.measures.significance import intervals
from stages.measures.statistics import (
    CalibrationStatistic,
    ConfusionStatistic,
    Statistic,
    has_four_words,
)
from stages.rows.shards import row_shards, write_table
from stages.score.comparing import beside
from stages.score.counting import (
    BatchStatistics,
    SegmentBatch,
    Sum,
    WriteSums,
    batch_size,
    scoring_job,
)
from stages.score.options import ScoreConfig
from stages.score.segments import TaskScoring, read_segments
from stages.score.slicing import count_words, natural
from stages.score.systems import system_rows
from stages.score.tradeoff import tradeoffs
from stages.score.variety import variety

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact
    from stages.judges import WishJudge


def score(config: ScoreConfig, context: Context, inputs: Inputs) -> Result:
    """Writes the scores of all tasks, and what the report and later comparisons need of them."""
    (predictions,) = inputs["predictions"]
    shared = context.beam.shared
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
        counts = shared.path(context.scratch) / "words.parquet"
        tokenizers = {name: task.tokenizer for name, task in tasks.items()}
        count_words(inputs["records"], tokenizers, counts.here)
        counts.put()
    segments = shared.path(context.output) / "segments"
    batches = BatchStatistics(tasks, config.slices, segments, counts)
    sums = measured(context, "scores", shards, batches, predictions.rows)
    scores = scores_of(config, context.output, tasks, sums)
    others, tested = score_systems(config, context, predictions, tasks)
    written: dict[str, Sequence[Contract]] = {
        SCORES: [*scores, *others],
        SYSTEMS: tested,
        CLASSIFICATION: classification(tasks, predictions.tasks, sums),
        DIVERSITY: diversity_of(predictions, tasks),
        TRADEOFF: tradeoffs_of(predictions, tasks, config.judges),
    }
    for name, entries in written.items():
        write_json(context.output / name, [entry.to_json() for entry in entries])
    for score in scores:
        if score.whole:
            context.progress.say(
                f"{score.task}: {score.metric} {score.value:.4g} ({score.signature})"
            )
    return Result(
        rows_in=predictions.rows,
        rows=counted(sums),
        properties={"scoring": {name: task.to_json() for name, task in tasks.items()}},
    )


def measured(
    context: Context, label: str, shards: Sequence[Path], batches: BatchStatistics, total: int
) -> list[Sum]:
    """Statistics of all segments, summed in Beam, by task, split, slice and metric."""
    shared = context.beam.shared
    folder = shared.path(context.scratch / label)
    ticks = folder / "ticks"
    size = batch_size(total)
    items = []
    for path in shards:
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
        for start in range(0, rows, size):
            name = f"{path.stem}-{start:09d}"
            place = shared.path(path)
            items.append(SegmentBatch(name, place, start, size, new_ticks(ticks, name)))
    sums = WriteSums(folder / "sums")
    beam = context.beam
    watched = ticks if shared.objects is None else batches.folder
    with beam.watch(label, watched, total, "segments", len(items)):
        beam.run(lambda pipeline: scoring_job(pipeline, items, batches, sums))
    batches.folder.whole()
    return read_sums(sums.folder.whole(), batches.tasks)


def counted(sums: Sequence[Sum]) -> int:
    """Rows that were scored: those of the first metric of each task and split."""
    whole = {(each.task, each.split): each.n for each in reversed(sums) if not each.slice}
    return sum(whole.values())


def read_sums(folder: Path, tasks: Mapping[str, TaskScoring]) -> list[Sum]:
    """The sums that workers wrote, by task, split, slice and metric."""
    sums = [read(path, Sum) for path in folder.glob("*.json")]

    def place(summed: Sum) -> tuple[Any, ...]:
        metric = tasks[summed.task].metrics.index(summed.metric)
        slice = sorted((summed.slice or {}).items())
        return summed.task, summed.split, [(name, natural(value)) for name, value in slice], metric

    return sorted(sums, key=place)


def classification(
    scorings: Mapping[str, TaskScoring], tasks: Mapping[str, Task], sums: list[Sum]
) -> list[Classification]:
    """Confusion, each label's precision, recall and F1 beside its training rows, and calibration,
    of tasks with labels."""
    entries: dict[tuple[str, str], Classification] = {}
    for summed in sums:
        if summed.slice:
            continue
        measure = scorings[summed.task].statistic(summed.metric)
        key, total = (summed.task, summed.split), np.array(summed.total)
        entry = entries.get(key, Classification(task=summed.task, split=summed.split))
        if isinstance(measure, ConfusionStatistic):
            training = tasks[summed.task].training_rows or {}
            by_label = [
                row.model_copy(update={"training_rows": training.get(row.label, 0)})
                for row in measure.by_label(total)
            ]
            matrix = tuple(map(tuple, measure.matrix(total).tolist()))
            update = {"labels": measure.labels, "matrix": matrix, "by_label": tuple(by_label)}
        elif isinstance(measure, CalibrationStatistic):
            update = {"calibration": tuple(measure.bins(total))}
        else:
            continue
        entries[key] = entry.model_copy(update=update)
    return list(entries.values())


def score_systems(
    config: ScoreConfig, context: Context, predictions: Artifact, tasks: Mapping[str, TaskScoring]
) -> tuple[list[Score], list[Comparison]]:
    """The scores of other systems, and ours beside them with paired tests."""
    if not config.systems:
        return [], []
    scores: list[Score] = []
    compared: list[Comparison] = []
    # What a file of lines says is scored by what it says alone.
    alone = {
        name: replace(
            task,
            metrics=tuple(
                m for m in task.metrics if m not in (*FORCED, *NEED_PROBABILITIES, "wish")
            ),
        )
        for name, task in tasks.items()
    }
    for number, (name, pattern) in enumerate(config.systems.items()):
        folder = context.scratch / f"system-{number}"
        paths: list[Path] = []
        total = 0
        for part in system_rows(predictions, name, pattern, context):
            paths.append(folder / "rows" / f"{len(paths):05d}.parquet")
            write_table(part, paths[-1])
            total += len(part)
        shared = context.beam.shared
        for path in paths:
            shared.path(path).put()
        batches = BatchStatistics(alone, [], shared.path(folder) / "segments")
        sums = measured(context, f"system-{number}", paths, batches, total)
        theirs = scores_of(config, folder, alone, sums)
        scores += [score.model_copy(update={"baseline": name}) for score in theirs]
        compared += beside(theirs, context.output, folder, alone, name)
    return scores, compared


def scoring_of_tasks(config: ScoreConfig, predictions: Artifact) -> dict[str, TaskScoring]:
    """How each task is scored. Raises `ValueError` for a judge of what nobody wished for."""
    wished = predictions.properties.get("wishes", {})
    tried = [*wished, *predictions.properties.get("tradeoff", [])]
    for wish in config.judges:
        if wish not in tried:
            raise ValueError(
                f"judges.{wish}: generate wished for no {wish}{did_you_mean(wish, tried)}"
            )
    judges = {wish: judge for wish, judge in config.judges.items() if wish in wished}
    scorings = {}
    for name, task in predictions.tasks.items():
        spoken = any(kind in MEDIA and MEDIA[kind].spoken for kind in task.separate_modalities)
        metrics = [
            metric
            for metric in config.metrics or get_args(MetricName)
            if (metric in LABEL_METRICS) == bool(task.labels)
            and (metric not in FORCED or predictions.properties["scored_references"])
            and (config.metrics or metric not in SPOKEN or spoken)
            and (metric != "wish" or judges)
        ]
        if not metrics:
            fitting = "accuracy" if task.labels else "bleu or exact_match"
            raise ValueError(
                f"metrics: has none for task {name!r}; add {fitting}, or leave metrics: out"
            )
        tokenizer = config.tokenize or bleu_tokenizer(task.languages.get("target"))
        further = () if task.labels else tuple(config.references)
        scorings[name] = TaskScoring(
            tuple(metrics), tokenizer, task.labels, further, judges, wished
        )
    return scorings


class Group:
    """The segments of a place, whose scores are computed together."""

    def __init__(self, sums: Sequence[Sum], scoring: TaskScoring, resampled: bool) -> None:
        """
        Args:
            sums: one for each metric.
            resampled: whether bundles are kept, for intervals.
        """
        # A share of no rows is not a number.
        self.sums = [each for each in sums if each.metric != "wish" or each.total[1]]
        first = sums[0]
        self.place, self.n = Place.of(first.task, first.split, first.slice), first.n
        self.measures: dict[str, Statistic] = {
            summed.metric: scoring.statistic(summed.metric) for summed in self.sums
        }
        self.bundles = Bundles(self.measures) if resampled else None
        self.references: set[int] = set()
        """How many references segments have."""
        self.four_words = False

    def add(self, segments: pl.DataFrame) -> None:
        self.references.update(segments["references"].unique())
        if "bleu" in self.measures and not self.four_words:
            statistics = self.measures["bleu"].unpacked(segments["bleu"].to_numpy())
            self.four_words = has_four_words(statistics)
        if self.bundles is not None:
            self.bundles.add(segments)

    def scores(self, without: Collection[str]) -> Iterator[Score]:
        """The score of each metric that is not in `without`."""
        measures = {name: each for name, each in self.measures.items() if name not in without}
        ends = {}
        if self.bundles is not None:
            ends = intervals(measures, self.bundles.statistics())
            self.bundles = None  # it can be large
        for summed in self.sums:
            if summed.metric in measures:
                number = next(iter(self.references)) if len(self.references) == 1 else -1
                yield Score(
                    task=summed.task,
                    split=summed.split,
                    slice=summed.slice,
                    metric=summed.metric,
                    value=measures[summed.metric].score(np.array(summed.total)),
                    signature=measures[summed.metric].signature(number),
                    n=summed.n,
                    ci95=ends.get(summed.metric),
                )


def scores_of(
    config: ScoreConfig, folder: Path, tasks: Mapping[str, TaskScoring], sums: list[Sum]
) -> list[Score]:
    """The scores of all tasks, splits and slices, of segments in a folder."""
    kinds = Counter(
        (summed.task, summed.split, summed.metric, tuple(summed.slice))
        for summed in sums
        if summed.slice
    )
    groups = []
    for (task, split, cut), listed in (
        (key, list(group))
        for key, group in groupby(sums, lambda each: (each.task, each.split, each.slice))
    ):
        if cut and kinds[task, split, listed[0].metric, tuple(cut)] < 2:
            continue  # one slice is the whole
        groups.append(Group(listed, tasks[task], config.intervals))
    cuts = {name for group in groups for name in group.place.columns}
    wanted = {"task", "split", "references", *cuts, *(summed.metric for summed in sums)}
    scores: list[Score] = []
    undefined = set()  # tasks and splits without BLEU; the whole comes before its slices
    for chosen in in_passes(groups, lambda group: group.n):
        places = {group.place: group for group in chosen}
        columns = dict.fromkeys(place.columns for place in places)
        for segments in read_segments(folder, wanted):
            for place, part in by_place(segments, columns):
                if place in places:
                    places[place].add(part)
        for group in chosen:
            where = group.place[:2]
            whole = not group.place.slice
            if whole and "bleu" in group.measures and not (config.metrics or group.four_words):
                undefined.add(where)
            scores += group.scores(["bleu"] if where in undefined else [])
    return scores


def diversity_of(predictions: Artifact, tasks: Mapping[str, TaskScoring]) -> list[Variety]:
    """Quality against variety, where generate drew several outputs."""
    if not predictions.properties["diversity"]:
        return []
    table = pl.read_parquet(predictions.folder / "diversity.parquet")
    if "drawn" not in table.columns:  # version 0.1.0
        drawn = pl.col("sample").max().over("kind", "temperature").cast(pl.Int64) + 1
        table = table.drop("reference").with_columns(drawn=drawn, weight=pl.lit(None, pl.Float64))
    return variety(with_references(table, predictions, tasks), tasks)


def tradeoffs_of(
    predictions: Artifact, tasks: Mapping[str, TaskScoring], judges: Mapping[str, WishJudge]
) -> list[Tradeoff]:
    """What meeting wishes costs, where generate tried."""
    if not predictions.properties.get("tradeoff") or not judges:
        return []
    table = pl.read_parquet(predictions.folder / TRADEOFF_ROWS)
    told = with_references(table, predictions, tasks)
    return tradeoffs(told, predictions.properties["split"], tasks, judges)


def with_references(
    table: pl.DataFrame, predictions: Artifact, tasks: Mapping[str, TaskScoring]
) -> pl.DataFrame:
    """Outputs of rows that are among the predictions, by id, with the references of the rows."""
    further = {name for scoring in tasks.values() for name in scoring.references}
    rows = [
        pl.scan_parquet(path).filter(pl.col("id").is_in(table["id"].unique().implode())).collect()
        for path in row_shards(predictions)
    ]
    known = pl.concat(rows, how="diagonal").unique("id", keep="first", maintain_order=True)
    asked = known.select("id", "reference", *sorted(further & set(known.columns)))
    # A row that was rejected for its wish has no reference here.
    return table.join(asked, "id", how="inner", maintain_order="left")
