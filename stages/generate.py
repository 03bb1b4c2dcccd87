"""Generate: features and graphs in, predictions out; in bulk on ONNX Runtime, in Beam."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

if TYPE_CHECKING:
    from pipelines.beam import Item

UNIT_ROWS = 4096
"""Small shards are decoded together until they hold this many rows: long batches of like length."""


class GenerateConfig(Config):
    """What is decoded, and on what."""

    split: Annotated[
        Literal["train", "valid", "test"], Field(description="the rows to generate for")
    ] = "test"
    providers: Annotated[
        list[Literal["cuda", "cpu"]],
        Field(
            min_length=1, description="execution providers, the preferred first; none is an error"
        ),
    ] = ["cuda", "cpu"]
    batch_tokens: Annotated[
        int, Field(ge=1, description="most padded source tokens in a batch")
    ] = 1024
    score_references: Annotated[
        bool, Field(description="also score the references: perplexity and token accuracy")
    ] = True
    prompts: Annotated[
        list[str], Field(description="texts of your own to generate for and show in the report")
    ] = []


class Generate(Stage):
    """Decodes greedily with the exported graphs; a killed run goes on at the next shard."""

    Config: ClassVar[Any] = GenerateConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "graphs": Input("graphs", "the exported model"),
        "features": Input("features", "token ids of the rows to generate for"),
    }
    output: ClassVar[str] = "predictions"
    libraries: ClassVar[tuple[str, ...]] = ("apache-beam", "onnxruntime", "numpy", "sentencepiece")

    def run(self, context: Context, inputs: Inputs) -> Result:
        from exports.translator import Translator
        from pipelines.files import write_json
        from stages.inference import GenerateShard, GraphsHandler, inference
        from stages.rows import link_files

        config: GenerateConfig = self.config
        (graphs,), (features,) = inputs["graphs"], inputs["features"]
        if graphs.properties["vocabulary"] != features.properties["vocabulary"]:
            raise ValueError("the graphs were made for another vocabulary than the features have")
        units = _units(features.files("rows/*.parquet"), config.split)
        total = sum(sum(unit["rows"].values()) for unit in units)
        if total == 0:
            raise ValueError(f"there are no {config.split} rows to generate for")
        threads = context.beam.threads

        def transform(step: Any) -> Any:
            return inference(
                GraphsHandler(
                    step, str(graphs.folder), config.providers, threads, config.batch_tokens
                )
            )

        # Into scratch first, where a resumed run finds the shards that are done.
        shards = context.scratch / "shards"
        shard = GenerateShard(shards, config.split, config.score_references)
        results = context.beam.map(
            "generate", units, shard, context.scratch, total=total, unit="rows", transform=transform
        )
        link_files(shards / "rows", context.output / "rows")
        translator = Translator(graphs.folder, config.providers, threads)
        answers = translator.translate(config.prompts) if config.prompts else []
        shown = [
            {"prompt": prompt, "output": output}
            for prompt, output in zip(config.prompts, answers, strict=True)
        ]
        write_json(context.output / "prompts.json", shown)
        unfinished = sum(result["unfinished"] for result in results)
        if unfinished:
            context.progress.say(f"{unfinished} of {total} rows reached the limit of length")
        return Result(
            rows_in=total,
            rows=sum(result["rows"] for result in results),
            properties={
                **{key: features.properties[key] for key in ("languages", "task")},
                "split": config.split,
                "providers": sorted({result["provider"] for result in results}),
                "tokens": sum(result["tokens"] for result in results),
                "unfinished": unfinished,
                "scored_references": config.score_references,
            },
        )


def _units(paths: list[Path], split: str) -> list[Item]:
    """Shards in groups of about UNIT_ROWS rows of the wanted split, with the rows of each."""
    import polars as pl

    units: list[Item] = []
    group: dict[str, int] = {}
    for path in paths:
        splits = pl.read_parquet(path, columns=["split"])["split"]
        group[str(path)] = int((splits == split).sum())
        if sum(group.values()) >= UNIT_ROWS:
            units.append(_unit(group, len(units)))
            group = {}
    return [*units, _unit(group, len(units))] if group else units


def _unit(group: dict[str, int], number: int) -> Item:
    return {"name": f"unit-{number:05d}", "paths": list(group), "rows": dict(group)}
