"""Beam's RunInference over our graphs: a ModelHandler, and the shards around it.

Apart from `stages.generate`, so that planning a pipeline imports no Beam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import polars as pl
from apache_beam.ml.inference.base import ModelHandler, RunInference

from exports.session import Provider
from exports.translator import Translator
from pipelines.beam import Item, tick
from stages.features import ragged
from stages.rows import write_table

COLUMNS = ["id", "split", "task", "text", "reference", "source_ids", "target_ids"]


class GraphsHandler(ModelHandler[Item, Item, Translator]):  # type: ignore[misc]
    """Loads one session a process and decodes shard by shard."""

    def __init__(
        self,
        step: Callable[[Item], Item],
        graphs: str,
        providers: Sequence[Provider],
        threads: int,
        batch_tokens: int,
    ) -> None:
        super().__init__()
        self.step, self.graphs, self.threads = step, graphs, threads
        self.providers, self.batch_tokens = tuple(providers), batch_tokens

    def load_model(self) -> Translator:
        return Translator(Path(self.graphs), self.providers, self.threads, self.batch_tokens)

    def run_inference(
        self,
        batch: Sequence[Item],
        model: Translator,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[Any]:
        # A shard is a batch already; how its rows are batched is the translator's business.
        return [self.step({**item, "translator": model}) for item in batch]

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_metrics_namespace(self) -> str:
        return "generate"


def inference(handler: GraphsHandler) -> beam.PTransform[Any, Any]:
    return RunInference(handler)


class GenerateShard:
    """Decodes the rows of one shard that belong to the wanted split, and writes them down."""

    def __init__(self, output: Path, split: str, score_references: bool) -> None:
        self.output, self.split, self.score_references = output, split, score_references

    def __call__(self, item: Item) -> Item:
        translator: Translator = item["translator"]
        table = pl.concat([pl.read_parquet(path, columns=COLUMNS) for path in item["paths"]])
        table = table.filter(pl.col("split") == self.split)
        source = ragged(table["source_ids"])
        hypotheses = translator.decode(source, lambda rows: tick(item, rows))
        tokens = [hypothesis.tokens for hypothesis in hypotheses]
        table = table.with_columns(
            pl.Series("hypothesis", translator.text.decode(tokens), dtype=pl.String),
            pl.Series("tokens", tokens, dtype=pl.List(pl.Int32)),
            pl.Series("log_probability", [h.score for h in hypotheses], dtype=pl.Float64).round(4),
            pl.Series("finished", [h.finished for h in hypotheses], dtype=pl.Boolean),
        )
        if self.score_references:
            forced = translator.force(source, ragged(table["target_ids"]))
            scores = [row.score for row in forced]
            table = table.with_columns(
                pl.Series("reference_log_probability", scores, dtype=pl.Float64).round(4),
                pl.Series("reference_tokens", [row.tokens for row in forced], dtype=pl.Int64),
                pl.Series("reference_correct", [row.correct for row in forced], dtype=pl.Int64),
            )
        table = table.drop("source_ids", "target_ids")
        written = 0
        for path in item["paths"]:
            part = table.slice(written, item["rows"][path])
            written += len(part)
            write_table(part, self.output / "rows" / Path(path).name)
        unfinished = sum(not hypothesis.finished for hypothesis in hypotheses)
        return {
            "rows": len(table),
            "tokens": sum(len(row) for row in tokens),
            "unfinished": unfinished,
            "provider": translator.stepper.provider,
        }
