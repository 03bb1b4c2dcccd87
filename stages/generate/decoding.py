"""Decoding in Beam: the step that holds the graphs, and the shards around it.

It is separate from `stages.generate.stage`, so that planning a pipeline does not import Beam. It
does not use Beam's RunInference, whose module imports PyTorch: that costs every worker 220 MB and
more than a second, only to share one object among threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apache_beam as beam
import numpy as np
import polars as pl
from apache_beam.utils import shared

from exports.decoding.beam_search import BeamSearch
from exports.decoding.constraints import Constraints
from exports.decoding.sampling import Sampling
from exports.decoding.session import Provider
from exports.decoding.several import Drawing, Selection
from exports.decoding.translator import Translator
from model.batching import Ragged
from model.wishes import Wishes
from pipelines.contracts.predictions import WISHED
from pipelines.registry import load, resolve
from pipelines.running.beam_jobs import Recorded, Ticks, without_garbage_collection, worker_threads
from pipelines.store.shared import SharedPath
from stages.features.columns import column, float_lists
from stages.features.feature_set import FeaturePaths, Rows
from stages.rows.files import sizes_of
from stages.rows.rejects import RejectFile
from stages.rows.shards import write_table

if TYPE_CHECKING:
    from stages.generate.options import SearchConfig, SelectConfig, WishConfig

EMPTY = {
    "hypothesis": pl.lit(None, pl.String),
    "tokens": pl.lit(None, pl.List(pl.Int32)),
    "log_probability": pl.lit(None, pl.Float64),
    "token_log_probabilities": pl.lit(None, pl.List(pl.Float64)),
    "finished": pl.lit(None, pl.Boolean),
    "labels": pl.lit(None, pl.List(pl.String)),
    "probabilities": pl.lit(None, pl.List(pl.Float64)),
}
"""Columns that decoding adds. `token_log_probabilities` includes EOS if it was reached; `labels`
and `probabilities` are for tasks with labels, best first."""
BEST = pl.Struct({"hypothesis": pl.String, "log_probability": pl.Float64})
"""The n-best list: if several hypotheses are kept, `best` has all of them, also the first."""


@dataclass(frozen=True)
class TranslatorMaker:
    """What a worker needs to load the graphs; only data, so it can be sent to workers."""

    graphs: SharedPath
    providers: tuple[Provider, ...]
    share: int
    """How many workers there are on a machine, see `pipelines.running.beam_jobs`."""
    batch_tokens: int
    search: SearchConfig
    seed: int
    words: tuple[str, ...] = ()
    """The only words or phrases allowed in outputs, if there are any."""
    select: SelectConfig | None = None

    def __call__(self) -> Translator:
        asked = self.search
        translator = Translator(
            self.graphs.whole(),
            self.providers,
            worker_threads(self.share),
            self.batch_tokens,
            BeamSearch(asked.beam, asked.length_penalty, asked.best, asked.stop, asked.coverage),
            Constraints(asked.minimum, asked.no_repeat),
            Sampling(asked.temperature, seed=self.seed, top_k=asked.top_k, top_p=asked.top_p)
            if asked.temperature
            else None,
            asked.maximum,
            None if self.select is None else self.drawing(self.select),
        )
        if self.words:
            translator.allow(self.words)
        return translator

    def drawing(self, asked: SelectConfig) -> Drawing:
        """How several outputs are drawn and chosen."""
        utility = load(resolve("utilities", asked.utility))
        return Drawing(
            asked.draws,
            Sampling(asked.temperature, seed=self.seed),
            Selection(asked.keep, asked.variety, utility),
            frozenset(asked.tasks),
        )


@dataclass(frozen=True)
class ShardGroup:
    """Shards of features that are decoded together."""

    name: str
    shards: tuple[str, ...]
    """The files' names of shards of text features."""
    rows: int
    """Of the wanted split."""


@dataclass(frozen=True)
class DecodedShards:
    """What became of a group."""

    rows: int
    tokens: int
    unfinished: int
    """Rows that reached the limit of length."""
    provider: str
    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class Decode(beam.DoFn):  # type: ignore[misc]
    """Applies a function to groups of shards, with the translator that all threads of a process
    share. The translator decides how the rows of a group are batched."""

    def __init__(
        self, function: Recorded[ShardGroup, DecodedShards], make: TranslatorMaker
    ) -> None:
        self.function, self.make, self.shared = function, make, shared.Shared()

    def setup(self) -> None:
        self.translator = self.shared.acquire(self.make)

    def process(self, group: ShardGroup) -> Iterator[str]:
        with without_garbage_collection():
            name = self.function.apply(group, self.translator)
        yield name


class GenerateShards:
    """Decodes the rows of some shards that belong to the wanted split, and writes the results."""

    def __init__(
        self,
        output: SharedPath,
        shards: int,
        features: FeaturePaths,
        split: str,
        labels: Mapping[str, Sequence[str]],
        top: int,
        score_references: bool,
        prefix: str | None = None,
        wish: WishConfig | None = None,
    ) -> None:
        self.output, self.shards, self.features, self.split = output, shards, features, split
        self.labels, self.top, self.score_references = dict(labels), top, score_references
        self.prefix, self.wish = prefix, wish

    def rejects(self, group: ShardGroup) -> SharedPath:
        return self.output / "rejects" / f"{group.name}.arrow"

    def __call__(self, group: ShardGroup, ticks: Ticks, translator: Translator) -> DecodedShards:
        rows = self.features.load(group.shards, self.split, each_part=True)
        if self.wish is not None:
            known = translator.stepper.wishes
            rows = rows.without(unknown_wishes(self.wish, rows.table, known, self.labels))
        rejects = RejectFile(self.rejects(group).here, self.shards)
        rejects.add_rows(rows.missing, "generate")
        table = rows.table.with_row_index("row")
        parts = [
            self.choose(translator, rows, part, self.labels[str(task)], ticks)
            if self.labels[str(task)]
            else self.decode(translator, rows, part, ticks)
            for (task,), part in table.group_by(["task"], maintain_order=True)
        ]
        table = pl.concat([table.clear().with_columns(**EMPTY), *parts], how="diagonal").sort("row")
        if self.score_references:
            forced = translator.force(rows.source, rows.target)
            scores = [row.score for row in forced]
            table = table.with_columns(
                pl.Series("reference_log_probability", scores, dtype=pl.Float64).round(4),
                pl.Series("reference_tokens", [row.tokens for row in forced], dtype=pl.Int64),
                pl.Series("reference_correct", [row.correct for row in forced], dtype=pl.Int64),
            )
        written = [self.output / "rows" / name for name in group.shards]
        for name, place in zip(group.shards, written, strict=True):
            part = table.filter(shard=name)
            part = part.drop("row", "shard", "source_ids", "target_ids")
            write_table(part, place.here)
        batches = rejects.close()
        return DecodedShards(
            rows=len(table),
            tokens=int(table["tokens"].list.len().sum()),
            unfinished=int((~table["finished"]).sum()),
            provider=translator.stepper.provider,
            rejected=rejects.counts,
            rejects=batches,
            files=sizes_of(*written, self.rejects(group)),
        )

    def decode(
        self, translator: Translator, rows: Rows, part: pl.DataFrame, ticks: Ticks
    ) -> pl.DataFrame:
        """Hypotheses of rows of a task without labels."""
        source = rows.source.take(part["row"].to_numpy().astype("int64"))
        keys: list[str] = []
        if translator.sampling is not None or translator.drawing is not None:
            # The random draws of a row depend on its id, not on shards and batches.
            keys = part.select(pl.concat_str("id", "part", separator="/")).to_series().to_list()
        prefixes = None
        if self.prefix is not None:
            if self.prefix not in part.columns:
                raise ValueError(
                    f"search.prefix: the rows have no column {self.prefix!r}; add it to ingest's "
                    "columns:"
                )
            prefixes = translator.prefixes(
                part[self.prefix].cast(pl.String).fill_null("").to_list()
            )
        if self.wish is not None:
            wishes = wanted(self.wish, part)
            source = translator.wishing(source, wishes, self.wish.strength)
            part = part.with_columns(
                pl.Series(WISHED + name, [row.get(name) for row in wishes], dtype=pl.String)
                for name in self.wish.wanted
            )
        searched = translator.search(source, ticks, keys, prefixes)
        winners = [hypotheses[0] for hypotheses in searched]
        tokens = [hypothesis.tokens for hypothesis in winners]
        decoded = iter(translator.target.decode([h.tokens for row in searched for h in row]))
        texts = [[next(decoded) for _ in row] for row in searched]
        if translator.keeps(source) > 1:
            best = [
                [
                    {"hypothesis": text, "log_probability": round(h.score, 4)}
                    for text, h in zip(*row, strict=True)
                ]
                for row in zip(texts, searched, strict=True)
            ]
            part = part.with_columns(pl.Series("best", best, dtype=pl.List(BEST)))
        return part.with_columns(
            pl.Series("hypothesis", [row[0] for row in texts], dtype=pl.String),
            column("tokens", Ragged.of(tokens)),
            pl.Series("log_probability", [h.score for h in winners], dtype=pl.Float64).round(4),
            float_lists("token_log_probabilities", [h.gains for h in winners], 4),
            pl.Series("finished", [h.finished for h in winners], dtype=pl.Boolean),
        )

    def choose(
        self,
        translator: Translator,
        rows: Rows,
        part: pl.DataFrame,
        labels: Sequence[str],
        ticks: Ticks,
    ) -> pl.DataFrame:
        """The most probable labels of rows, the first of them as hypothesis."""
        source = rows.source.take(part["row"].to_numpy().astype("int64"))
        ranked = translator.rank(source, labels, ticks)
        order = np.argsort(-ranked, axis=1, kind="stable")[:, : self.top]
        likely = np.take_along_axis(ranked, order, axis=1)
        encoded = translator.target.encode(labels)
        tokens = [encoded.row(int(best))[:-1] for best in order[:, 0]]
        names = [[labels[number] for number in row] for row in order]
        return part.with_columns(
            pl.Series("hypothesis", [row[0] for row in names], dtype=pl.String),
            pl.Series("tokens", tokens, dtype=pl.List(pl.Int32)),
            pl.Series("log_probability", np.log(likely[:, 0]), dtype=pl.Float64).round(4),
            pl.Series("finished", [True] * len(part), dtype=pl.Boolean),
            pl.Series("labels", names, dtype=pl.List(pl.String)),
            pl.Series("probabilities", likely.round(6).tolist(), dtype=pl.List(pl.Float64)),
        )


def unknown_wishes(
    asked: WishConfig, rows: pl.DataFrame, known: Wishes, labels: Mapping[str, Sequence[str]]
) -> pl.Series:
    """Why rows wish for what the model does not know; null for those that do not, and for those of
    tasks with labels, which are not decoded freely."""
    reasons: list[str | None] = []
    for task, wishes in zip(rows["task"], wanted(asked, rows), strict=True):
        if labels[task]:
            wishes = {}
        strange = [name for name, value in wishes.items() if value not in known.values[name]]
        reasons.append(f"unknown value of wish {strange[0]}" if strange else None)
    return pl.Series(reasons, dtype=pl.String)


def wanted(asked: WishConfig, rows: pl.DataFrame) -> list[dict[str, str]]:
    """The wishes of every row, by name. Raises `ValueError` for a column that is not there."""
    wishes: list[dict[str, str]] = [{} for _ in range(len(rows))]
    for wish, value in asked.wanted.items():
        if isinstance(value, str):
            values: Sequence[str | None] = [value] * len(rows)
        elif value.column not in rows.columns:
            raise ValueError(
                f"wish.{wish}: the rows have no column {value.column!r}; add it to ingest's "
                "columns:"
            )
        else:
            values = rows[value.column].cast(pl.String).to_list()
        for row, text in zip(wishes, values, strict=True):
            if text:
                row[wish] = text
    return wishes
