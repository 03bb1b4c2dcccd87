"""Score: predictions in, scores out, by task and slice, each with its signature and interval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage
from stages.metrics import (
    FORCED,
    LABEL_METRICS,
    LENGTH,
    NEED_PROBABILITIES,
    RARITY,
    SPOKEN,
    MetricName,
)

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store import Artifact
    from stages.scoring import BatchStatistics, TaskScoring


class ScoreConfig(Config):
    """Which scores are computed."""

    metrics: Annotated[
        list[MetricName],
        Field(
            description="the scores; by default accuracy, top_accuracy, macro_f1 and "
            "calibration_error for tasks with labels, the others for tasks without, wer and cer "
            "where there is audio, bleu where a reference has four words (it is 0 otherwise)"
        ),
    ] = []
    tokenize: Annotated[
        Literal["13a", "zh", "intl", "char", "none"] | None,
        Field(description="BLEU's tokenizer; by default zh for Chinese targets, 13a otherwise"),
    ] = None
    references: Annotated[
        list[str],
        Field(
            description="columns with further references, for bleu, chrf and ter; a row may lack "
            "some"
        ),
    ] = []
    slices: Annotated[
        list[str],
        Field(
            description="columns by whose values everything is scored apart as well; a+b is every "
            "combination of two; length: words of the reference; rarity: times that its rarest "
            "word stands in the training references (it needs records:)"
        ),
    ] = ["modalities"]
    systems: Annotated[
        dict[str, str],
        Field(
            description="other systems' outputs by name, scored and tested beside ours: a file "
            "with a line for each of text/*.src.txt; {task} and {split} in its name stand for each"
        ),
    ] = {}
    intervals: Annotated[
        bool, Field(description="95% bootstrap intervals, as sacrebleu --confidence has them")
    ] = True


class Score(Stage):
    """Scores predictions against references, with sacreBLEU's metrics and signatures."""

    Config: ClassVar[Any] = ScoreConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "predictions": Input("predictions", "hypotheses beside their references"),
        "records": Input(
            "records", "training rows, for slices by rarity", many=True, optional=True
        ),
    }
    output: ClassVar[str] = "scores"
    libraries: ClassVar[tuple[str, ...]] = (
        "apache-beam",
        "sacrebleu",
        "jiwer",
        "numpy",
        "polars",
    )

    def check(self, given: Collection[str]) -> None:
        if any(RARITY in slice.split("+") for slice in self.config.slices) != ("records" in given):
            raise ValueError("slices: rarity and records: go together; one of them is missing")

    def outside(self, base: Path) -> Iterator[tuple[str, str]]:
        from pipelines.fingerprint import file_digest
        from stages.systems import files_of

        for name, pattern in self.config.systems.items():
            for path in files_of(pattern, base):
                yield f"system {name}: {path.name}", file_digest(path)

    def run(self, context: Context, inputs: Inputs) -> Result:
        import polars as pl

        from pipelines.files import write_json
        from stages.rows import row_shards
        from stages.scoring import BatchStatistics
        from stages.slicing import count_words

        config: ScoreConfig = self.config
        (predictions,) = inputs["predictions"]
        shards = row_shards(predictions)
        columns = {name for path in shards for name in pl.read_parquet_schema(path)}
        wanted = {
            "slices": {name for slice in config.slices for name in slice.split("+")}
            - {LENGTH, RARITY},
            "references": set(config.references),
        }
        for option, names in wanted.items():
            if names - columns:
                raise ValueError(
                    f"{option}: names {', '.join(sorted(names - columns))}; the predictions have "
                    f"{', '.join(sorted(columns))}"
                )
        tasks = self.tasks(predictions)
        counts = None
        if inputs["records"]:
            counts = context.scratch / "words.parquet"
            tokenizers = {name: task.tokenizer for name, task in tasks.items()}
            count_words(inputs["records"], tokenizers, counts)
        batches = BatchStatistics(tasks, config.slices, context.output / "segments", counts)
        found = measured(context, "scores", shards, batches, predictions.rows)
        scores = self.scores(context.output, tasks, found)
        others, beside = self.systems(context, predictions, tasks)
        write_json(context.output / "scores.json", [*scores, *others])
        write_json(context.output / "systems.json", beside)
        facts = predictions.properties["tasks"]
        write_json(context.output / "classification.json", classification(tasks, facts, found))
        write_json(context.output / "diversity.json", self.diversity(predictions, tasks))
        for score in scores:
            if not score["slice"]:
                context.progress.say(
                    f"{score['task']}: {score['metric']} {score['value']:.4g} "
                    f"({score['signature']})"
                )
        return Result(
            rows_in=predictions.rows,
            rows=counted(scores),
            properties={"scoring": {name: asdict(task) for name, task in tasks.items()}},
        )

    def systems(
        self, context: Context, predictions: Artifact, tasks: Mapping[str, TaskScoring]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The scores of other systems, and ours beside them with paired tests."""
        from stages.comparing import beside
        from stages.rows import write_table
        from stages.scoring import BatchStatistics
        from stages.systems import system_rows

        if not self.config.systems:
            return [], []
        scores, compared = [], []
        ours = read_segments(context.output)
        # What a file of lines says is scored by what it says alone.
        alone = {
            name: replace(
                task,
                metrics=tuple(m for m in task.metrics if m not in (*FORCED, *NEED_PROBABILITIES)),
            )
            for name, task in tasks.items()
        }
        for number, (name, pattern) in enumerate(self.config.systems.items()):
            folder = context.scratch / f"system-{number}"
            paths: list[Path] = []
            total = 0
            for part in system_rows(predictions, pattern, context.base):
                paths.append(folder / "rows" / f"{len(paths):05d}.parquet")
                write_table(part, paths[-1])
                total += len(part)
            batches = BatchStatistics(alone, [], folder / "segments")
            found = measured(context, f"system-{number}", paths, batches, total)
            theirs = self.scores(folder, alone, found)
            scores += [{**score, "baseline": name} for score in theirs]
            compared += [
                {"system": name, **entry}
                for entry in beside(theirs, ours, read_segments(folder), alone)
            ]
        return scores, compared

    def compare(self, artifact: Artifact, baseline: Artifact) -> list[dict[str, Any]]:
        """Every score beside the baseline's on the segments that both have, with paired tests.

        Segments are the same where id and references are; scores are compared where they were
        computed the same way.
        """
        from stages.comparing import compared

        return compared(artifact, baseline)

    def tasks(self, predictions: Artifact) -> dict[str, TaskScoring]:
        """How each task is scored."""
        from stages.languages import bleu_tokenizer
        from stages.scoring import TaskScoring

        config: ScoreConfig = self.config
        tasks = {}
        for task, facts in predictions.properties["tasks"].items():
            spoken = any("audio" in kind.split("+") for kind in facts["modalities"])
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

    def scores(
        self, folder: Path, tasks: Mapping[str, TaskScoring], sums: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The scores of all tasks, splits and slices, of segments in a folder."""
        import numpy as np

        from stages.significance import intervals
        from stages.statistics import has_four_words

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
            kept = {
                name: measure.unpacked(rows[name].to_numpy()) for name, measure in measures.items()
            }
            unasked = "bleu" in kept and not cut and not self.config.metrics
            if unasked and not has_four_words(kept["bleu"]):
                undefined.add((task, split))
            if (task, split) in undefined:
                measures.pop("bleu", None)
            ends = intervals(measures, kept) if self.config.intervals else {}
            numbers = rows["references"].unique()
            for found in listed:
                if found["metric"] not in measures:
                    continue
                measure = measures[found["metric"]]
                scores.append(
                    {
                        "task": task,
                        "split": split,
                        "slice": found["slice"],
                        "metric": found["metric"],
                        "value": measure.score(np.array(found["total"])),
                        "signature": measure.signature(numbers.item() if len(numbers) == 1 else -1),
                        "n": found["n"],
                        "ci95": list(ends[found["metric"]]) if ends else None,
                    }
                )
        return scores

    def diversity(
        self, predictions: Artifact, tasks: Mapping[str, TaskScoring]
    ) -> list[dict[str, Any]]:
        """Quality against variety, where generate drew several outputs."""
        import polars as pl

        from stages.variety import variety

        if not predictions.properties["diversity"]:
            return []
        table = pl.read_parquet(predictions.folder / "diversity.parquet")
        return variety(table, {task: scoring.tokenizer for task, scoring in tasks.items()})


def measured(
    context: Context, label: str, shards: Sequence[Path], batches: BatchStatistics, total: int
) -> list[dict[str, Any]]:
    """Statistics of all segments, summed in Beam, by task, split, slice and metric."""
    import polars as pl

    from pipelines.beam import Beam, ticks_path
    from stages.scoring import WriteSums, batch_size, scoring_job

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
    beam: Beam = context.beam
    with beam.watch(label, ticks, total, "segments"):
        beam.run(lambda pipeline: scoring_job(pipeline, items, batches, sums))
    return read_sums(sums.folder, batches.tasks)


def read_segments(folder: Path, wanted: Collection[str] | None = None) -> pl.DataFrame:
    """What is kept of every segment: who it is, what was said, and the statistics of each metric
    as an array; all columns, or those that are wanted and there."""
    import polars as pl

    tables = []
    for path in sorted(folder.glob("segments/*")):
        there = pl.read_parquet_schema(path)
        chosen = [name for name in there if wanted is None or name in wanted]
        tables.append(pl.read_parquet(path, columns=chosen))
    return pl.concat(tables, how="diagonal")


def counted(scores: list[dict[str, Any]]) -> int:
    """Rows that were scored: those of the first metric of each task and split."""
    whole = {(s["task"], s["split"]): s["n"] for s in reversed(scores) if not s["slice"]}
    return sum(whole.values())


def read_sums(folder: Path, tasks: Mapping[str, TaskScoring]) -> list[dict[str, Any]]:
    """The sums that workers wrote, by task, split, slice and metric."""
    from stages.slicing import natural

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
    import numpy as np

    from stages.statistics import CalibrationStatistic, ConfusionStatistic

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
