"""What `text` does.

Every shard is prepared and filtered (Beam), the vocabulary is trained on the training split only,
every shard is encoded (Beam).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from model.modalities.processing import Processor
from model.modalities.text import TextProcessor, prepare, single_line, train_subwords
from model.modalities.text_settings import SideSettings, TextSettings
from pipelines.contracts.tasks import Task, in_json
from pipelines.running.beam_jobs import Ticks
from pipelines.stage import Context, Inputs, Result
from pipelines.store.shared import SharedPath
from pipelines.store.sources import read_planned
from stages.features.columns import column
from stages.rows.batches import in_groups
from stages.rows.files import sizes_of
from stages.rows.pieces import RecordShard, record_shards
from stages.rows.rejects import RejectFile, check_rejected, gather_rejects, summed
from stages.rows.shards import ROW_GROUP, TableFile, link_files, table_groups
from stages.rows.tasks import joined_tasks
from stages.text.class_counts import Counts, class_counts, merged_counts
from stages.text.options import FilterConfig, TextConfig, VocabularyConfig


def prepare_text(config: TextConfig, context: Context, inputs: Inputs) -> Result:
    """Writes the features of all records: token ids, settings and vocabulary."""
    records = inputs["records"]
    tasks = {name: _as_references(task) for name, task in joined_tasks(records).items()}
    if inputs["model"]:
        settings = _adopt(inputs["model"][0].folder, context.output, tasks)
    else:
        settings = side_settings(config, tasks, context)
    shards = record_shards(records, context.beam.shared)
    steps = Steps(settings, config.filter, tasks, context, len(shards))
    total = sum(shard.rows for shard in shards)
    prepared = context.beam.map(
        "prepare", shards, steps.prepare, PreparedShard, context.scratch, total=total, unit="rows"
    )
    if not inputs["model"]:
        paths = [steps.prepared_path(shard) for shard in shards]
        trained = sum(shard.trained for shard in prepared)
        _train_vocabulary(context, settings, config.vocabulary, paths, trained)
    steps.vocabulary.put()
    encoded = context.beam.map(
        "encode", shards, steps.encode, EncodedShard, context.scratch, total=total, unit="rows"
    )
    link_files(steps.encoded, context.output / "rows")
    if len(records) > 1:  # in one set of records, ingest has seen to it
        _check_ids(context.output)
    rejects: dict[SharedPath, Sequence[int]] = {}
    for shard, first, second in zip(shards, prepared, encoded, strict=True):
        rejects[steps.rejects("prepare", shard)] = first.rejects
        rejects[steps.rejects("encode", shard)] = second.rejects
    outcomes: list[PreparedShard | EncodedShard] = [*prepared, *encoded]
    rejected = summed(outcome.rejected for outcome in outcomes)
    gather_rejects(rejects, context.output, len(shards))
    rows = sum(shard.rows for shard in encoded)
    check_rejected(context.stage, total, rejected, config.max_rejected)
    counts = [shard.classes for shard in encoded]
    classes = context.beam.combine(counts, merged_counts, context.scratch / "classes.json")
    return Result(
        rows_in=total,
        rows=rows,
        rejected=rejected,
        properties={
            "modality": "text",
            "tasks": in_json(
                {
                    name: task.model_copy(update={"training_rows": classes.get(name, {})})
                    for name, task in tasks.items()
                }
            ),
            "splits": {
                split: sum(shard.splits.get(split, 0) for shard in encoded)
                for split in ("train", "valid", "test")
            },
            "sizes": TextProcessor.load(context.output / "text").sizes,
        },
    )


def _as_references(task: Task) -> Task:
    """A task with its labels as references have them."""
    labels = single_line(pl.Series(task.labels, dtype=pl.String)).unique(maintain_order=True)
    return task.model_copy(update={"labels": tuple(labels.to_list())})


def _adopt(model: Path, output: Path, tasks: Mapping[str, Task]) -> TextSettings:
    """Takes over the preprocessing of a model. Raises `ValueError` if it lacks a task."""
    processor = Processor.load(model)
    processor.task_numbers(list(tasks))
    shutil.copytree(processor.text.folder, output / "text", dirs_exist_ok=True)
    return processor.text.settings


MOST_BYTES = 100_000_000
"""Largest file of stop words."""
IDS_AT_ONCE = 2_000_000


def _check_ids(output: Path) -> None:
    """Raises `ValueError` if two sets of records have the same row."""
    paths = sorted(output.glob("rows/*.parquet"))
    rows = sum(parquet.read_metadata(path).num_rows for path in paths)
    parts = rows // IDS_AT_ONCE + 1
    for part in range(parts):
        ids = pl.scan_parquet(paths, extra_columns="ignore").select("id", "position")
        chosen = ids.filter(pl.col("id").hash() % parts == part).collect(engine="streaming")
        twice = chosen.filter(pl.col("id").is_duplicated()).head(2)
        if len(twice):
            raise ValueError(
                f"two records have the id {twice['id'][0]} ({' and '.join(twice['position'])}): "
                "give one of the sets of records another task:"
            )


@dataclass(frozen=True)
class PreparedShard:
    """What became of a shard before its subwords are known."""

    rows: int
    trained: int
    """Rows of the training split."""
    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


@dataclass(frozen=True)
class EncodedShard:
    """What became of a shard in the end."""

    rows: int
    splits: dict[str, int]
    classes: Counts
    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class Steps:
    """The two per-shard functions; holds only paths and settings that can be sent to workers."""

    def __init__(
        self,
        settings: TextSettings,
        filters: FilterConfig,
        tasks: Mapping[str, Task],
        context: Context,
        shards: int,
    ) -> None:
        self.shards = shards
        self.settings, self.filters, self.tasks = settings, filters, tasks
        self.vocabulary = context.beam.shared.path(context.output) / "text"
        scratch = context.beam.shared.path(context.scratch)
        self.prepared = scratch / "prepared"
        self.encoded = scratch / "encoded"
        self.rejected = scratch / "rejected"

    def prepared_path(self, shard: RecordShard) -> SharedPath:
        return self.prepared / f"{shard.name}.parquet"

    def rejects(self, label: str, shard: RecordShard) -> SharedPath:
        return self.rejected / f"{label}-{shard.name}.arrow"

    def prepare(self, shard: RecordShard, ticks: Ticks) -> PreparedShard:
        """Normalised and segmented text of one shard, without the pairs that filters reject."""
        rejects = RejectFile(self.rejects("prepare", shard).here, self.shards)
        rows = trained = 0
        with TableFile(self.prepared_path(shard).here) as written:
            for group in table_groups(Path(shard.path), shard.columns):
                table = self.prepare_rows(group, rejects)
                written.add(table)
                rows += len(table)
                trained += len(table.filter(split="train"))
                ticks(len(group))
        keys = rejects.close()
        files = sizes_of(self.prepared_path(shard), self.rejects("prepare", shard))
        return PreparedShard(rows, trained, rejects.counts, keys, files)

    def prepare_rows(self, table: pl.DataFrame, rejects: RejectFile) -> pl.DataFrame:
        """The rows that pass the filters, with their text prepared."""
        if "text" not in table.columns:
            table = table.with_columns(text=pl.lit(None, pl.String))
        table = table.with_columns(reference=single_line(table["target"]))
        # Cells with whole paragraphs are separated before the expensive steps see them.
        long = table.with_columns(
            reason=pl.when(
                pl.max_horizontal(pl.col("text", "target").str.len_chars())
                > self.filters.max_characters
            ).then(pl.lit("too long"))
        )
        table, dropped = _parted(long)
        table = table.with_columns(
            prepared_source=prepare(table["text"], self.settings.source),
            prepared_target=prepare(table["target"], self.settings.target),
        )
        table = table.with_columns(reason=pl.coalesce(self.reasons()))
        accepted, filtered = _parted(table)
        rejects.add_rows(dropped, "text")
        rejects.add_rows(filtered, "text")
        return accepted

    def reasons(self) -> list[Any]:
        """Polars expressions: why a pair is rejected before subwords are known, or null."""
        reasons: list[Any] = []
        for side in ("source", "target"):
            column = pl.col(f"prepared_{side}")
            reasons.append(pl.when(column == "").then(pl.lit(f"empty {side} after normalisation")))
        for side, script in self.filters.script.items():
            column = pl.col(f"prepared_{side}")
            letters = column.str.count_matches(r"\p{L}")
            fitting = column.str.count_matches(rf"\p{{{script}}}")
            reasons.append(
                pl.when(fitting * 2 < letters).then(pl.lit(f"{side} is not in {script} script"))
            )
        return reasons

    def encode(self, shard: RecordShard, ticks: Ticks) -> EncodedShard:
        """Subword ids of one prepared shard, without the pairs whose lengths do not fit."""
        processor = TextProcessor.load(self.vocabulary.whole())
        rejects = RejectFile(self.rejects("encode", shard).here, self.shards)
        splits: Counter[str] = Counter()
        classes: list[Counts] = []

        def encoded() -> Iterator[pl.DataFrame]:
            for group in table_groups(Path(self.prepared_path(shard))):
                table = self.encode_rows(group, processor, rejects)
                splits.update(dict(table.group_by("split").len().iter_rows()))
                classes.append(class_counts(table, self.tasks))
                ticks(len(group))
                yield table

        path = self.encoded / f"{shard.name}.parquet"
        with TableFile(path.here) as written:
            for table in in_groups(encoded(), ROW_GROUP):
                written.add(table)
        keys = rejects.close()
        return EncodedShard(
            sum(splits.values()),
            dict(splits),
            merged_counts(classes),
            rejects.counts,
            keys,
            sizes_of(path, self.rejects("encode", shard)),
        )

    def encode_rows(
        self, table: pl.DataFrame, processor: TextProcessor, rejects: RejectFile
    ) -> pl.DataFrame:
        """The rows whose lengths fit, with their subword ids."""
        sources = processor.encode_prepared(table["prepared_source"].fill_null(""), "source")
        targets = processor.encode_prepared(table["prepared_target"], "target")
        table = table.with_columns(column("source_ids", sources), column("target_ids", targets))
        missing = pl.col("text").is_null()
        nothing = pl.lit([], pl.List(pl.Int32))
        table = table.with_columns(
            source_ids=pl.when(~missing).then("source_ids").otherwise(nothing)
        )
        target = pl.col("target_ids").list.len()
        # A row without text has no source length to compare.
        source = pl.when(missing).then(target).otherwise(pl.col("source_ids").list.len())
        longest = pl.max_horizontal(source, target)
        reasons = [pl.when(longest > self.filters.max_tokens).then(pl.lit("too many tokens"))]
        if self.filters.max_ratio is not None:
            ratio = longest / pl.min_horizontal(source, target)
            reasons.append(
                pl.when(ratio > self.filters.max_ratio).then(pl.lit("lengths do not fit"))
            )
        accepted, dropped = _parted(table.with_columns(reason=pl.coalesce(reasons)))
        rejects.add_rows(dropped, "text")
        return accepted.drop("prepared_source", "prepared_target")


def _parted(table: Any) -> tuple[Any, Any]:
    """Rows whose `reason` is null, without that column; and the others."""
    return table.filter(pl.col("reason").is_null()).drop("reason"), table.filter(
        pl.col("reason").is_not_null()
    )


def _train_vocabulary(
    context: Context,
    settings: TextSettings,
    vocabulary: VocabularyConfig,
    paths: Sequence[SharedPath],
    rows: int,
) -> None:
    """Writes the `text/` folder: settings and subword models.

    Args:
        paths: the prepared shards, in order.
        rows: how many training rows they have.
    """
    folder = context.output / "text"
    folder.mkdir(exist_ok=True)

    def train(texts: pl.Series, name: str, size: int) -> None:
        path = folder / f"{name}.spm"
        train_subwords(texts, path, size, vocabulary.algorithm, vocabulary.coverage)

    table = _sample(paths, rows, vocabulary.sample)
    if table.is_empty():
        raise ValueError("no training rows are left to train the vocabulary on")
    if settings.sources and table["prepared_source"].drop_nulls().is_empty():
        raise ValueError("some rows have text as source, but none in the training split")
    of = f" of {rows:,}" if rows > len(table) else ""
    context.progress.say(f"training the vocabulary on {len(table):,}{of} pairs")
    source, target = table["prepared_source"].drop_nulls(), table["prepared_target"]
    if settings.shared:
        if vocabulary.shared and not isinstance(vocabulary.size, int):
            raise ValueError("vocabulary: a shared one has one size, not one for each side")
        train(pl.concat([source, target]), "shared", vocabulary.of("target"))
    else:
        train(source, "source", vocabulary.of("source"))
        train(target, "target", vocabulary.of("target"))
    text = settings.model_dump_json(indent=2) + "\n"
    (folder / "text.json").write_text(text, encoding="utf-8")


def _sample(paths: Sequence[SharedPath], rows: int, most: int) -> pl.DataFrame:
    """The prepared text of the training rows, or of every second, third and so on: ids are hashes,
    so their order has nothing to do with the text."""
    step, before = -(-rows // most), 0
    parts: list[pa.Table] = []
    for path in paths:
        for group in table_groups(Path(path), ["split", "prepared_source", "prepared_target"]):
            train = group.filter(split="train").drop("split")
            chosen = train.gather_every(step, (-before) % step) if step > 1 else train
            # Polars' strings are views: without a copy, each would keep its whole group in memory.
            parts.append(chosen.to_arrow(compat_level=pl.CompatLevel.oldest()))
            before += len(train)
    table = pl.from_arrow(pa.concat_tables(parts))
    assert isinstance(table, pl.DataFrame)
    return table


def side_settings(config: TextConfig, tasks: Mapping[str, Task], context: Context) -> TextSettings:
    """The options of each side together, as the processor takes them."""
    sides = {}
    for side in ("source", "target"):
        words = config.stopwords.get(side, [])
        if isinstance(words, str):
            data = read_planned(words, context.base, context.outside, MOST_BYTES)
            words = data.decode("utf-8").split()
        sides[side] = SideSettings(
            normalize=config.normalize.get(side, "nfc"),
            chinese=config.chinese.get(side),
            lowercase=config.lowercase.get(side, False),
            segment=config.segment.get(side),
            stopwords=tuple(words),
        )
    written = any("text" in task.separate_modalities for task in tasks.values())
    return TextSettings(
        **sides,
        # Without text as source there is nothing to train a source vocabulary on.
        shared=config.vocabulary.shared or not written,
        sources=written,
        tasks=tuple(tasks),
    )
