"""What a model is trained from: features of all modalities, packed for training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from model.parallel.team import Team
from model.training.packed import PackedRows, Packer, packed
from model.training.rows import TrainingRows
from pipelines.registry import did_you_mean
from stages.features.feature_set import FeatureSet, Rows

SPLITS = ("train", "valid")
HELD_OUT, MISSING = "held-out.parquet", "missing.json"
Oversample = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Wanted:
    """What a model wants of its rows."""

    longest: int
    """Positions that it takes."""
    mix: Mapping[str, float]
    oversample: Oversample
    columns: Collection[str]
    """Of the records; only these are kept of the rows to learn from."""


@dataclass(frozen=True)
class Corpus:
    """The rows that are learnt from, and those that are held out for validation."""

    train: PackedRows
    valid: Rows
    tables: Mapping[str, pl.DataFrame]
    """The columns that were asked for, of the rows of each split."""
    missing: Mapping[str, int]
    """How many rows of each split are left out, because a picture or sound was rejected."""

    @property
    def validation(self) -> TrainingRows:
        """The held-out rows as training takes them."""
        return TrainingRows(self.valid.source, self.valid.target)

    @classmethod
    def of(
        cls, features: FeatureSet, folder: Path, wanted: Wanted, team: Team | None = None
    ) -> Corpus:
        """Packs features, a shard at a time, so that no more than one is in memory. Raises
        `ValueError` for rows that cannot be trained on.

        Args:
            folder: what it had is removed.
            team: the processes that use the folder; the leader packs for all.
        """
        team = team or Team()
        if team.leads:
            _pack(features, folder, wanted)
        team.meet()
        known = features.processor.settings
        settings = {name: known[name] for name in features.media}
        train, valid = (packed(folder / split, settings) for split in SPLITS)
        table = pl.read_parquet(folder / HELD_OUT)
        return cls(
            train,
            Rows(table, valid.source, valid.target, table.clear()),
            {split: pl.read_parquet(folder / f"{split}.parquet") for split in SPLITS},
            json.loads((folder / MISSING).read_text()),
        )


def _pack(features: FeatureSet, folder: Path, wanted: Wanted) -> None:
    """Writes what `Corpus.of` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    packers: dict[str, Packer] = {}
    tables: dict[str, list[pl.DataFrame]] = {split: [] for split in SPLITS}
    missing = dict.fromkeys(SPLITS, 0)
    drawn = Drawn(wanted.oversample)
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        packers[split] = Packer(folder / split, wanted.mix if split == "train" else {})
    held_out: list[pl.DataFrame] = []
    there: set[str] = set()
    for shard in features.shards():
        whole = features.paths.load([shard.name], None)
        there |= set(whole.table.columns)
        for split in SPLITS:
            rows = whole.of(split)
            missing[split] += len(rows.missing)
            if not len(rows.table):
                continue
            check(rows, split, wanted.longest)
            times = drawn.times(rows.table) if split == "train" else None
            tasks = rows.table["task"].to_list()
            packers[split].add(TrainingRows(rows.source, rows.target, tasks, times))
            tables[split].append(_only(rows.table, wanted.columns))
            if split == "valid":
                held_out.append(rows.table)
    for split in SPLITS:
        if not tables[split]:
            raise ValueError(f"there are no {split} rows; give ingest a split: with {split}")
    drawn.check()
    for split in SPLITS:
        packers[split].finish()
        kept = pl.concat(tables[split]).select(name for name in wanted.columns if name in there)
        kept.write_parquet(folder / f"{split}.parquet")
    pl.concat(held_out, how="diagonal").write_parquet(folder / HELD_OUT)
    (folder / MISSING).write_text(json.dumps(missing))


def _only(table: pl.DataFrame, columns: Collection[str]) -> pl.DataFrame:
    """Some columns as categories, which take little memory; null where a table lacks one."""
    return table.select(
        pl.col(name).cast(pl.String).cast(pl.Categorical)
        if name in table.columns
        else pl.repeat(None, pl.len(), dtype=pl.Categorical).alias(name)
        for name in columns
    )


class Drawn:
    """How often rows are drawn, by what is in their columns."""

    def __init__(self, oversample: Oversample) -> None:
        self.oversample = oversample
        self._values: dict[str, set[str]] = {}
        self._columns: set[str] = set()

    def times(self, table: pl.DataFrame) -> np.ndarray:
        """How often each row of a table is drawn."""
        times = np.ones(len(table), dtype=np.int64)
        self._columns |= set(table.columns)
        for column, values in self.oversample.items():
            if column not in table.columns:
                continue
            texts = table[column].cast(pl.String)
            self._values.setdefault(column, set()).update(texts.drop_nulls().unique())
            for value, count in values.items():
                times[(texts == value).fill_null(False).to_numpy()] *= count
        return times

    def check(self) -> None:
        """Raises `ValueError` for what no row had."""
        for column, values in self.oversample.items():
            if column not in self._columns:
                raise ValueError(
                    f"oversample: the rows have no column {column!r}"
                    f"{did_you_mean(column, sorted(self._columns))}"
                )
            for value in values:
                if value not in self._values[column]:
                    raise ValueError(
                        f"oversample.{column}: no training row has {value!r}"
                        f"{did_you_mean(value, sorted(self._values[column]))}"
                    )


def check(rows: Rows, split: str, most: int) -> None:
    """Raises `ValueError` if a row is longer than a model takes."""
    longest = max(rows.source.longest, int(rows.target.lengths.max()))
    if longest > most:
        raise ValueError(
            f"a {split} row has {longest} positions, the model takes {most}: lower the text "
            "stage's filter.max_tokens or the audio stage's max_seconds, or raise model.max_length"
        )
