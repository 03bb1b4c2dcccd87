"""What `generate` does around decoding: groups of shards, prompts, several outputs of a source."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import polars as pl
from apache_beam import ParDo

from exports.decoding.hypotheses import Hypothesis
from exports.decoding.translator import Translator
from model.modalities.sources import SourceRows, are_same
from model.wishes import Wishes
from pipelines.contracts.predictions import PROMPTS, TRADEOFF_ROWS, Answer
from pipelines.contracts.tasks import in_json
from pipelines.stage import Context, Inputs, Result
from pipelines.store.files import write_json
from pipelines.store.sources import read_planned
from stages.features.feature_set import FeatureSet
from stages.generate.decoding import (
    Decode,
    DecodedShards,
    GenerateShards,
    ShardGroup,
    TranslatorMaker,
)
from stages.generate.diversity import Draws
from stages.generate.options import (
    DiversityConfig,
    GenerateConfig,
    PromptConfig,
    TradeoffConfig,
)
from stages.generate.tradeoff import Tradeoffs
from stages.rows.rejects import gather_rejects, summed
from stages.rows.shards import link_files, write_table

GROUP_ROWS = 4096, 16_384
"""The fewest and the most rows of shards that are decoded together: the more rows there are, the
more similar in length are the rows of a batch."""
MOST_BYTES = 100_000_000
"""Largest file of words, and of a prompt."""
GROUP_BYTES = 256 << 20
"""The largest average size of shards that are decoded together, with pictures and sounds."""


def generate(config: GenerateConfig, context: Context, inputs: Inputs) -> Result:
    """Writes the predictions of all rows of a split, and what else was asked for."""
    (graphs,) = inputs["graphs"]
    features = FeatureSet.of(inputs["features"])
    if not are_same(graphs.properties["sizes"], features.processor.sizes):
        raise ValueError("the graphs were made for different features")
    if config.search.coverage and not graphs.properties["attention"]:
        raise ValueError(
            "search.coverage: the graphs do not output attention; set attention: true in export"
        )
    if config.wish is not None:
        known = Wishes({wish: tuple(v) for wish, v in graphs.properties.get("wishes", {}).items()})
        for wish, value in config.wish.wanted.items():
            known.check(wish, value if isinstance(value, str) else None)
    if config.tradeoff is not None and not graphs.properties.get("wishes"):
        raise ValueError("tradeoff: the model knows no wishes; see wishes: in train")
    groups = shard_groups(features, config.split)
    total = sum(group.rows for group in groups)
    if total == 0:
        raise ValueError(f"there are no {config.split} rows to generate for")
    shared = context.beam.shared
    make = TranslatorMaker(
        shared.path(graphs.folder),
        tuple(config.providers),
        context.beam.share,
        config.batch_tokens,
        config.search,
        context.seed,
        read_words(config, context),
        config.select,
    )

    # Written into scratch first, where a resumed run finds the finished shards.
    shards = shared.path(context.scratch) / "shards"
    labels = {name: task.labels for name, task in features.tasks.items()}
    decode_group = GenerateShards(
        shards,
        len(groups),
        features.shared_paths(shared),
        config.split,
        labels,
        config.top,
        config.score_references,
        config.search.prefix,
        config.wish,
    )
    decoded = context.beam.map(
        "generate",
        groups,
        decode_group,
        DecodedShards,
        context.scratch,
        total=total,
        unit="rows",
        transform=lambda step: ParDo(Decode(step, make)),
    )
    link_files(shards / "rows", context.output / "rows")
    files = {
        decode_group.rejects(group): outcome.rejects
        for group, outcome in zip(groups, decoded, strict=True)
    }
    gather_rejects(files, context.output, len(groups))
    rejected = summed(outcome.rejected for outcome in decoded)
    answers: list[Answer] = []
    if config.prompts or config.diversity is not None or config.tradeoff is not None:
        translator = make()
        answers = answer_prompts(config, translator, context)
        if config.diversity is not None:
            draw_diversity(config.diversity, config.split, translator, features, context)
        if config.tradeoff is not None:
            draw_tradeoff(config.tradeoff, config.split, translator, features, context)
    write_json(context.output / PROMPTS, [answer.to_json() for answer in answers])
    unfinished = sum(group.unfinished for group in decoded)
    rows = sum(group.rows for group in decoded)
    if unfinished:
        context.progress.say(f"{unfinished} of {rows} rows reached the length limit")
    return Result(
        rows_in=rows + sum(rejected.values()),
        rows=rows,
        rejected=rejected,
        properties={
            "tasks": in_json(features.tasks),
            "split": config.split,
            "providers": sorted({group.provider for group in decoded}),
            "tokens": sum(group.tokens for group in decoded),
            "unfinished": unfinished,
            "scored_references": config.score_references,
            "diversity": config.diversity is not None,
            "tradeoff": []
            if config.tradeoff is None
            else sorted(graphs.properties.get("wishes", {})),
            "wishes": {}
            if config.wish is None
            else {
                wish: value if isinstance(value, str) else f"of column {value.column}"
                for wish, value in config.wish.wanted.items()
            },
        },
    )


def shard_groups(features: FeatureSet, split: str) -> list[ShardGroup]:
    """Groups of shards, each with its number of rows of the wanted split: four groups or a multiple
    of four, if there are enough rows, so that no worker waits long for another."""
    shards = features.shards()
    splits = [pl.read_parquet(path, columns=["split"])["split"] for path in shards]
    rows = [int((each == split).sum()) for each in splits]
    fewest, most = GROUP_ROWS
    count = min(4 * ceil(sum(rows) / (4 * most)), ceil(sum(rows) / fewest))
    count = max(1, count, ceil(sum(map(features.size_of, shards)) / GROUP_BYTES))
    # Consecutive shards are from one source, so each group gets some of every source.
    groups = [range(first, len(shards), count) for first in range(min(count, len(shards)))]
    return [
        ShardGroup(
            f"group-{index:05d}",
            tuple(shards[number].name for number in group),
            sum(rows[number] for number in group),
        )
        for index, group in enumerate(groups)
    ]


def read_words(config: GenerateConfig, context: Context) -> tuple[str, ...]:
    """The only words or phrases allowed in outputs. Raises `ValueError` for an empty file."""
    if config.search.words is None:
        return ()
    path = config.search.words
    try:
        data = read_planned(path, context.base, context.outside, MOST_BYTES)
        lines = data.decode("utf-8").splitlines()
    except ValueError as error:
        raise ValueError(f"search.words: {path}: {error}") from error
    words = tuple(line.strip() for line in lines if line.strip())
    if not words:
        raise ValueError(f"search.words: {path} has no words")
    return words


def answer_prompts(
    config: GenerateConfig, translator: Translator, context: Context
) -> list[Answer]:
    """The user's own sources, each with the generated output."""

    def read(path: str) -> bytes:
        return read_planned(path, context.base, context.outside, MOST_BYTES)

    fixed, strength = {}, 0.0
    if config.wish is not None:
        fixed = {wish: v for wish, v in config.wish.wanted.items() if isinstance(v, str)}
        strength = config.wish.strength
    answers = []
    for prompt in config.prompts:
        if isinstance(prompt, str):
            prompt = PromptConfig(text=prompt)
        media = {name: read(path) for name, path in prompt.files.items()}
        record = {"text": prompt.text, **media}
        (output,) = translator.answer([record], prompt.task, fixed, strength)
        parts = (prompt.text, *prompt.files.values())
        answers.append(Answer(prompt=" + ".join(filter(None, parts)), output=output))
    return answers


def draw_diversity(
    asked: DiversityConfig,
    split: str,
    translator: Translator,
    features: FeatureSet,
    context: Context,
) -> None:
    """Writes `diversity.parquet`: several outputs of some rows, at every temperature."""
    chosen, source = some_rows("diversity", asked.rows, split, features)
    made_of = Draws(asked, translator, source, chosen["id"].to_list(), context.seed)
    tables = []
    with context.progress.meter("diversity", made_of.total, "outputs") as meter:
        for made in made_of.all(meter.advance):
            tables.append(
                outputs(chosen, made.kept, translator).with_columns(
                    kind=pl.lit(made.kind),
                    temperature=pl.lit(made.temperature),
                    weight=pl.lit(made.weight, pl.Float64),
                    drawn=pl.lit(made.drawn),
                )
            )
    write_table(pl.concat(tables), context.output / "diversity.parquet")


def draw_tradeoff(
    asked: TradeoffConfig,
    split: str,
    translator: Translator,
    features: FeatureSet,
    context: Context,
) -> None:
    """Writes `tradeoff.parquet`: outputs of some rows, for every wish in every strength."""
    chosen, source = some_rows("tradeoff", asked.rows, split, features)
    made_of = Tradeoffs(asked, translator, source, chosen["id"].to_list(), context.seed)
    tables = []
    with context.progress.meter("tradeoff", made_of.total, "outputs") as meter:
        for made in made_of.all(meter.advance):
            tables.append(
                outputs(chosen, made.kept, translator).with_columns(
                    kind=pl.lit(made.kind),
                    wish=pl.lit(made.wish, pl.String),
                    value=pl.lit(made.value, pl.String),
                    strength=pl.lit(made.strength),
                    drawn=pl.lit(made.drawn),
                )
            )
    write_table(pl.concat(tables), context.output / TRADEOFF_ROWS)


def some_rows(
    option: str, count: int, split: str, features: FeatureSet
) -> tuple[pl.DataFrame, SourceRows]:
    """`id` and `task` of rows of each task without labels, the first by id; and their source, of
    recordings the first piece."""
    shards = [path.name for path in features.shards()]
    rows = features.paths.load(shards, split)
    open_tasks = [name for name, task in features.tasks.items() if not task.labels]
    ranked = rows.table.with_row_index("row").filter(pl.col("task").is_in(open_tasks))
    chosen = ranked.sort("id").group_by("task", maintain_order=True).head(count)
    if chosen.is_empty():
        raise ValueError(f"{option}: every task has labels; leave {option}: out")
    source = rows.source.take(chosen["row"].to_numpy().astype("int64"))
    return chosen.select("id", "task"), source


def outputs(
    chosen: pl.DataFrame, kept: Sequence[Sequence[Hypothesis]], translator: Translator
) -> pl.DataFrame:
    """The rows with each of their outputs as `hypothesis`, numbered by `sample`."""
    texts = translator.target.decode([h.tokens for each in kept for h in each])
    numbers = pl.Series([list(range(len(each))) for each in kept])
    several = chosen.with_columns(sample=numbers).explode("sample")
    return several.with_columns(hypothesis=pl.Series(texts, dtype=pl.String))
