"""Generate: features and graphs in, predictions out; in bulk on ONNX Runtime, in Beam."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

if TYPE_CHECKING:
    from exports.translator import Translator
    from pipelines.beam import Item
    from stages.features import FeatureSet

UNIT_ROWS = 4096, 16_384
"""Shards are decoded together until they hold so many rows, the fewest and the most: the more there
are, the more alike in length are those of a batch."""
UNIT_BYTES = 256 << 20
"""What shards that are decoded together hold on average, at most, pictures and sounds counted."""


class DiversityConfig(Config):
    """Several outputs for each of some rows, to see how quality falls as variety grows."""

    rows: Annotated[int, Field(ge=1, description="rows of each task without labels")] = 100
    samples: Annotated[int, Field(ge=2, description="outputs for each row")] = 5
    latent: Annotated[
        list[float], Field(description="temperatures of the latent variable, tokens being greedy")
    ] = [0.5, 1.0, 2.0]
    sampling: Annotated[
        list[float], Field(description="temperatures of the tokens, the latent at its mean")
    ] = [0.3, 0.6, 1.0]


class SearchConfig(Config):
    """How outputs are searched for; greedily as it stands."""

    beam: Annotated[
        int, Field(ge=1, description="hypotheses of a source that run side by side")
    ] = 1
    length_penalty: Annotated[
        float,
        Field(ge=0, description="scores are divided by (tokens, EOS counted) to this power"),
    ] = 1.0
    coverage: Annotated[
        float,
        Field(
            ge=0,
            description="weight of what is taken off hypotheses that leave parts of their source "
            "unread (GNMT's coverage penalty); it takes graphs exported with attention: true",
        ),
    ] = 0.0
    best: Annotated[
        int, Field(ge=1, description="hypotheses kept of each source, at most as many as run")
    ] = 1
    stop: Annotated[
        Literal["first", "bound"],
        Field(
            description="first: once as many as run have finished, as fairseq does; bound: once "
            "none that runs can get past the worst that is kept"
        ),
    ] = "first"
    minimum: Annotated[int, Field(ge=0, description="fewest tokens of an output")] = 0
    maximum: Annotated[
        int | None,
        Field(
            ge=1, description="most tokens of an output; twice its source's and ten if not given"
        ),
    ] = None
    no_repeat: Annotated[
        int, Field(ge=0, description="no run of so many tokens comes twice in an output; 0 for any")
    ] = 0
    prefix: Annotated[
        str | None, Field(description="column with what each output begins with; may be empty")
    ] = None
    words: Annotated[
        str | None,
        Field(description="file of words or phrases, one a line: no other subwords may be said"),
    ] = None
    temperature: Annotated[
        float,
        Field(
            ge=0, description="draw tokens at this temperature instead, each row by its own seed"
        ),
    ] = 0.0
    top_k: Annotated[
        int, Field(ge=0, description="draw from so many most probable tokens; 0 for all")
    ] = 0
    top_p: Annotated[
        float,
        Field(gt=0, le=1, description="draw from the fewest tokens that reach this probability"),
    ] = 1.0

    @model_validator(mode="after")
    def _fits(self) -> SearchConfig:
        if self.best > self.beam:
            raise ValueError(f"best: {self.best} is more than beam: {self.beam}")
        if self.coverage and self.beam == 1:
            raise ValueError("coverage: chooses among hypotheses; say beam: too")
        if self.temperature and self.beam > 1:
            raise ValueError("temperature: draws one hypothesis of a source; leave beam: out")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k: and top_p: say what is drawn from; say temperature: too")
        return self


class PromptConfig(Config):
    """A source of your own; paths of files start in the pipeline file's folder."""

    task: Annotated[str | None, Field(description="which task, where the model has several")] = None
    text: Annotated[str | None, Field(description="text")] = None
    image: Annotated[str | None, Field(description="path of a picture")] = None
    audio: Annotated[str | None, Field(description="path of a sound")] = None


class GenerateConfig(Config):
    """What is decoded, and on what."""

    split: Annotated[
        Literal["train", "valid", "test"], Field(description="the rows to generate for")
    ] = "test"
    providers: Annotated[
        list[Literal["tensorrt", "cuda", "cpu"]],
        Field(
            min_length=1, description="execution providers, the preferred first; none is an error"
        ),
    ] = ["cuda", "cpu"]
    batch_tokens: Annotated[
        int,
        Field(ge=1, description="most padded source tokens in a batch; with a beam 2/size of it"),
    ] = 2048
    search: Annotated[SearchConfig, Field(description="how outputs are searched for")] = (
        SearchConfig()
    )
    score_references: Annotated[
        bool, Field(description="also score the references: perplexity and token accuracy")
    ] = True
    top: Annotated[
        int, Field(ge=1, description="labels kept with their probabilities, for tasks with labels")
    ] = 5
    diversity: Annotated[
        DiversityConfig | None, Field(description="also draw several outputs for some rows")
    ] = None
    prompts: Annotated[
        list[str | PromptConfig],
        Field(description="sources of your own to generate for and show in the report"),
    ] = []


class Generate(Stage):
    """Decodes with the exported graphs, or takes the most probable label where a task has some."""

    Config: ClassVar[Any] = GenerateConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "graphs": Input("graphs", "the exported model"),
        "features": Input("features", "of text, images and audio, of the rows", many=True),
    }
    output: ClassVar[str] = "predictions"
    libraries: ClassVar[tuple[str, ...]] = ("apache-beam", "onnxruntime", "numpy", "sentencepiece")
    seeded: ClassVar[bool] = True

    def outside(self, base: Path) -> Iterator[tuple[str, str]]:
        from stages.sources import content_digest, find_files

        paths = [self.config.search.words]
        for prompt in self.config.prompts:
            if isinstance(prompt, PromptConfig):
                paths += [prompt.image, prompt.audio]
        for path in filter(None, paths):
            for file in find_files(path, base):
                yield file.shown, content_digest(file.url)

    def run(self, context: Context, inputs: Inputs) -> Result:
        from apache_beam import ParDo

        from pipelines.files import write_json
        from stages.features import FeatureSet
        from stages.inference import Decode, GenerateShard, TranslatorMaker
        from stages.rows import gather_rejected, link_files, write_rejected

        config: GenerateConfig = self.config
        (graphs,) = inputs["graphs"]
        features = FeatureSet.of(inputs["features"])
        if graphs.properties["sizes"] != features.processor.sizes:
            raise ValueError("the graphs were made for other features than these")
        if config.search.coverage and not graphs.properties["attention"]:
            raise ValueError(
                "search.coverage: the graphs do not give attention; say attention: true in export"
            )
        units = _units(features, config.split)
        total = sum(unit["rows"] for unit in units)
        if total == 0:
            raise ValueError(f"there are no {config.split} rows to generate for")
        make = TranslatorMaker(
            str(graphs.folder),
            tuple(config.providers),
            context.beam.threads,
            config.batch_tokens,
            config.search,
            context.seed,
            self.words(context.base),
        )

        # Into scratch first, where a resumed run finds the shards that are done.
        shards = context.scratch / "shards"
        labels = {task: facts["labels"] for task, facts in features.tasks.items()}
        shard = GenerateShard(
            shards,
            features.paths,
            config.split,
            labels,
            config.top,
            config.score_references,
            config.search.prefix,
        )
        results = context.beam.map(
            "generate",
            units,
            shard,
            context.scratch,
            total=total,
            unit="rows",
            transform=lambda step: ParDo(Decode(step, make)),
        )
        link_files(shards / "rows", context.output / "rows")
        lost = gather_rejected(sorted((shards / "missing").glob("*.parquet")))
        rejected = write_rejected([lost], context.output, len(units))
        shown: list[dict[str, str]] = []
        if config.prompts or config.diversity is not None:
            translator = make()
            shown = self.prompts(translator, context)
            if config.diversity is not None:
                self.diversity(translator, features, context)
        write_json(context.output / "prompts.json", shown)
        unfinished = sum(result["unfinished"] for result in results)
        rows = sum(result["rows"] for result in results)
        if unfinished:
            context.progress.say(f"{unfinished} of {rows} rows reached the limit of length")
        return Result(
            rows_in=rows + sum(rejected.values()),
            rows=rows,
            rejected=rejected,
            properties={
                "tasks": features.tasks,
                "split": config.split,
                "providers": sorted({result["provider"] for result in results}),
                "tokens": sum(result["tokens"] for result in results),
                "unfinished": unfinished,
                "scored_references": config.score_references,
                "diversity": config.diversity is not None,
            },
        )

    def words(self, base: Path) -> tuple[str, ...]:
        """What alone may be said, where that is given. Raises `ValueError` for an empty file."""
        from stages.sources import find_files

        if self.config.search.words is None:
            return ()
        (file,) = find_files(self.config.search.words, base)
        lines = Path(file.url).read_text(encoding="utf-8").splitlines()
        found = tuple(line.strip() for line in lines if line.strip())
        if not found:
            raise ValueError(f"search.words: {file.shown} has no words")
        return found

    def prompts(self, translator: Translator, context: Context) -> list[dict[str, str]]:
        """The user's own sources with what comes out for each."""
        from stages.sources import find_files

        def read(path: str | None) -> bytes | None:
            if path is None:
                return None
            return Path(find_files(path, context.base)[0].url).read_bytes()

        shown = []
        for prompt in self.config.prompts:
            if isinstance(prompt, str):
                prompt = PromptConfig(text=prompt)
            record = {
                "text": prompt.text,
                "image": read(prompt.image),
                "audio": read(prompt.audio),
            }
            (output,) = translator.answer([record], prompt.task)
            parts = (prompt.text, prompt.image, prompt.audio)
            shown.append({"prompt": " + ".join(filter(None, parts)), "output": output})
        return shown

    def diversity(self, translator: Translator, features: Any, context: Context) -> None:
        """Writes `diversity.parquet`: several outputs of some rows, at every temperature."""
        import polars as pl

        from exports.decoding import Sampling
        from stages.rows import write_table

        asked: DiversityConfig = self.config.diversity
        shards = [str(path) for path in features.shards()]
        rows = features.paths.load(shards, self.config.split, each_part=True)
        open_tasks = [task for task, facts in features.tasks.items() if not facts["labels"]]
        ranked = rows.table.with_row_index("row").filter(pl.col("task").is_in(open_tasks))
        chosen = ranked.sort("id").group_by("task", maintain_order=True).head(asked.rows)
        if chosen.is_empty():
            raise ValueError("diversity: every task has labels; there is nothing to draw")
        settings = [("mean", 0.0, Sampling())]
        if translator.stepper.latent:
            settings += [
                ("latent", value, Sampling(latent_temperature=value, seed=context.seed))
                for value in asked.latent
            ]
        settings += [
            ("sampling", value, Sampling(temperature=value, seed=context.seed))
            for value in asked.sampling
        ]
        chosen = chosen.select("row", "id", "task", "reference")
        total = len(chosen) * sum(1 if kind == "mean" else asked.samples for kind, *_ in settings)
        tables = []
        with context.progress.meter("diversity", total, "outputs") as meter:
            for kind, temperature, sampling in settings:
                count = 1 if kind == "mean" else asked.samples
                drawn = pl.concat([chosen.with_columns(sample=pl.lit(n)) for n in range(count)])
                keys = [f"{id}/{n}" for id, n in drawn.select("id", "sample").iter_rows()]
                source = rows.source.take(drawn["row"].to_numpy().astype("int64"))
                found = translator.decode(source, meter.advance, sampling, keys)
                texts = translator.text.decode([one.tokens for one in found])
                tables.append(
                    drawn.drop("row").with_columns(
                        kind=pl.lit(kind),
                        temperature=pl.lit(temperature),
                        hypothesis=pl.Series(texts, dtype=pl.String),
                    )
                )
        write_table(pl.concat(tables), context.output / "diversity.parquet")


def _units(features: FeatureSet, split: str) -> list[Item]:
    """Shards in groups, with how many rows of the wanted split each has: four groups, or a multiple
    of that, where there are rows enough, so that no worker waits long for another."""
    import polars as pl

    shards = features.shards()
    splits = [pl.read_parquet(path, columns=["split"])["split"] for path in shards]
    rows = [int((each == split).sum()) for each in splits]
    fewest, most = UNIT_ROWS
    count = min(4 * ceil(sum(rows) / (4 * most)), ceil(sum(rows) / fewest))
    count = max(1, count, ceil(sum(map(features.size_of, shards)) / UNIT_BYTES))
    # Shards that follow one another are of one source: each group gets some of every source.
    groups = [range(first, len(shards), count) for first in range(min(count, len(shards)))]
    return [
        {
            "name": f"unit-{index:05d}",
            "paths": [str(shards[number]) for number in group],
            "rows": sum(rows[number] for number in group),
        }
        for index, group in enumerate(groups)
    ]
