"""Score: predictions in, scores out, each with its signature and interval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

Metrics = Literal["bleu", "chrf", "ter", "exact_match", "token_accuracy", "perplexity"]
FORCED = ("token_accuracy", "perplexity")
"""Metrics that need the references scored by the model."""


class ScoreConfig(Config):
    """Which scores are computed."""

    metrics: Annotated[list[Metrics], Field(min_length=1, description="the scores")] = [
        "bleu",
        "chrf",
        "ter",
        "exact_match",
        "token_accuracy",
        "perplexity",
    ]
    tokenize: Annotated[
        Literal["13a", "zh", "intl", "char", "none"] | None,
        Field(description="BLEU's tokenizer; by default zh for Chinese targets, 13a otherwise"),
    ] = None
    intervals: Annotated[
        bool, Field(description="95% bootstrap intervals, as sacrebleu --confidence has them")
    ] = True


class Score(Stage):
    """Scores predictions against references, with sacreBLEU's metrics and signatures."""

    Config: ClassVar[Any] = ScoreConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "predictions": Input("predictions", "hypotheses beside their references")
    }
    output: ClassVar[str] = "scores"
    libraries: ClassVar[tuple[str, ...]] = ("apache-beam", "sacrebleu", "numpy", "polars")

    def run(self, context: Context, inputs: Inputs) -> Result:
        import polars as pl

        from pipelines.beam import Beam, ticks_path
        from pipelines.files import write_json
        from stages.languages import bleu_tokenizer
        from stages.rows import row_shards
        from stages.scoring import BATCH, BatchStatistics, WriteSums, scoring_job

        config: ScoreConfig = self.config
        (predictions,) = inputs["predictions"]
        metrics = [
            metric
            for metric in config.metrics
            if metric not in FORCED or predictions.properties["scored_references"]
        ]
        language = predictions.properties["languages"].get("target")
        tokenizer = config.tokenize or bleu_tokenizer(language)
        ticks = context.scratch / "ticks"
        items = []
        for path in row_shards(predictions):
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
            for start in range(0, rows, BATCH):
                name = f"{path.stem}-{start:09d}"
                ticks_path(ticks, name).unlink(missing_ok=True)
                items.append(
                    {
                        "name": name,
                        "path": str(path),
                        "start": start,
                        "ticks": str(ticks_path(ticks, name)),
                    }
                )
        batches = BatchStatistics(metrics, tokenizer, context.output / "segments")
        sums = WriteSums(context.scratch / "sums")
        beam: Beam = context.beam
        with beam.watch("scores", ticks, predictions.rows, "segments"):
            beam.run(lambda pipeline: scoring_job(pipeline, items, batches, sums))
        scores = self.scores(context, metrics, tokenizer)
        write_json(context.output / "scores.json", scores)
        for score in scores:
            context.progress.say(f"{score['metric']} {score['value']:.4g} ({score['signature']})")
        return Result(
            rows_in=predictions.rows,
            rows=sum(s["n"] for s in scores if s["metric"] == metrics[0]),
            properties={"tokenizer": tokenizer},
        )

    def scores(
        self, context: Context, metrics: list[Metrics], tokenizer: str
    ) -> list[dict[str, Any]]:
        """The scores of all tasks and splits, in the order of the metrics asked for."""
        import numpy as np
        import polars as pl

        from stages.statistics import interval, statistic

        sums = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((context.scratch / "sums").glob("*.json"))
        ]
        sums.sort(key=lambda found: (found["task"], found["split"], metrics.index(found["metric"])))
        segments = pl.concat(
            [pl.read_parquet(path) for path in sorted(context.output.glob("segments/*.parquet"))]
        )
        scores = []
        for found in sums:
            metric = statistic(found["metric"], tokenizer)
            rows = segments.filter(task=found["task"], split=found["split"])[found["metric"]]
            ends = interval(metric, np.array(rows.to_list())) if self.config.intervals else None
            scores.append(
                {
                    "task": found["task"],
                    "split": found["split"],
                    "metric": found["metric"],
                    "value": metric.score(np.array(found["total"])),
                    "signature": metric.signature(),
                    "n": found["n"],
                    "ci95": list(ends) if ends else None,
                }
            )
        return scores
