"""Packed shard by shard, a corpus has the rows of its features; what is wrong with them is said."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.configuration import TrainingConfig
from model.modalities.text_settings import TextSettings
from model.training.rows import TrainingRows
from pipelines.store.artifacts import loose_artifact
from stages.corpus import Corpus, Wanted
from stages.features.feature_set import FeatureSet


def features(folder: Path, rows: int = 120, shards: int = 4, valid: int = 10) -> FeatureSet:
    """Text of two tasks, with a column `corpus` that the last shard does not have."""
    random = np.random.default_rng(5)
    (folder / "text").mkdir(parents=True)
    (folder / "rows").mkdir()
    settings = TextSettings(tasks=("few", "many"))
    (folder / "text" / "text.json").write_text(settings.model_dump_json())
    numbers = [f"{number:05d}" for number in range(rows)]
    table = pl.DataFrame(
        {
            "id": numbers,
            "split": ["valid" if n < valid else "train" for n in range(rows)],
            "task": ["few" if n % 4 == 0 else "many" for n in range(rows)],
            "modalities": ["text"] * rows,
            "source_ids": [random.integers(4, 60, random.integers(1, 9)).tolist() for _ in numbers],
            "target_ids": [random.integers(4, 60, random.integers(1, 9)).tolist() for _ in numbers],
            "corpus": ["a" if n % 3 else "b" for n in range(rows)],
        }
    )
    for number in range(shards):
        part = table[number::shards]
        part = part if number < shards - 1 else part.drop("corpus")
        part.write_parquet(folder / "rows" / f"{number}.parquet")
    return FeatureSet(loose_artifact(folder), {})


@pytest.mark.parametrize("columns", [[], ["corpus"], ["split", "corpus", "none"]])
def test_only_the_columns_that_are_asked_for_are_kept(tmp_path: Path, columns: list[str]) -> None:
    made = features(tmp_path / "features")
    found = corpus(made, tmp_path / "packed", columns=columns)
    table = made.paths.load([path.name for path in made.shards()], "train").table
    kept = found.tables["train"]
    assert kept.columns == [name for name in columns if name != "none"]
    for name in kept.columns:
        assert kept[name].to_list() == table[name].to_list()


def corpus(made: FeatureSet, folder: Path, **changes: Any) -> Corpus:
    options: dict[str, Any] = {"longest": 20, "mix": {}, "oversample": {}, "columns": []}
    return Corpus.of(made, folder, Wanted(**{**options, **changes}))


def test_a_corpus_has_the_rows_of_its_features(tmp_path: Path) -> None:
    made = features(tmp_path / "features")
    found = corpus(made, tmp_path / "packed", mix={"few": 0.3, "many": 0.7}, columns=["corpus"])
    names = [path.name for path in made.shards()]
    whole = {split: made.paths.load(names, split) for split in ("train", "valid")}
    train = whole["train"]
    expected = TrainingRows(train.source, train.target, train.table["task"].to_list())
    config = TrainingConfig(steps=1, batch_tokens=64, mix={"few": 0.3, "many": 0.7})
    steps = zip(found.train.steps(config, 3), expected.steps(config, 3), strict=True)
    for mine, theirs in itertools.islice(steps, 60):
        for part, other in zip(mine, theirs, strict=True):
            assert all(map(np.array_equal, part, other))
            (source, target), (wanted, answer) = (
                found.train.batch(*part[:2]),
                expected.batch(*other[:2]),
            )
            assert target.equal(answer) and all(source[name].equal(wanted[name]) for name in wanted)
    assert found.valid.table.equals(whole["valid"].table)
    assert found.tables["train"]["corpus"].to_list() == train.table["corpus"].to_list()
    assert found.tables["valid"].height == len(found.validation) == 10
    assert found.missing == {"train": 0, "valid": 0}


def test_rows_are_drawn_as_often_as_is_asked(tmp_path: Path) -> None:
    made = features(tmp_path / "features")
    found = corpus(made, tmp_path / "packed", oversample={"corpus": {"b": 3}, "task": {"few": 2}})
    table = made.paths.load([path.name for path in made.shards()], "train").table
    (drawn,) = found.train.groups({})
    times = np.bincount(drawn, minlength=len(table)).tolist()
    assert times == [
        (3 if corpus == "b" else 1) * (2 if task == "few" else 1)
        for corpus, task in table.select("corpus", "task").iter_rows()
    ]
    again = corpus(made, tmp_path / "packed")
    assert again.train.groups({})[0].tolist() == list(range(110)), "what was there has gone"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"oversample": {"corpsu": {"a": 2}}}, "the rows have no column 'corpsu'; .*corpus"),
        ({"oversample": {"corpus": {"c": 2}}}, "oversample.corpus: no training row has 'c'"),
        ({"mix": {"few": 1.0}}, "mix: names few; the training rows are of few, many"),
        ({"longest": 5}, "a (train|valid) row has [6-9] positions, the model takes 5"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        corpus(features(tmp_path / "features"), tmp_path / "packed", **changes)


def test_there_must_be_held_out_rows(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="there are no valid rows; give ingest a split: with valid"
    ):
        corpus(features(tmp_path / "features", valid=0), tmp_path / "packed")
