"""Several corpora for one task: what one holds out, another does not train on; several references
of a source become one row; near duplicates are found across ways of writing Chinese."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.running.executor import check_accounts
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.ingest.options import IngestConfig
from stages.ingest.stage import Ingest

Rows = list[tuple[str, str]]
Make = Callable[..., Artifact]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def run(rows: Rows, apart: tuple[Artifact, ...] = (), **options: Any) -> Artifact:
        number = len(list(tmp_path.glob("out-*")))
        (tmp_path / f"{number}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
        output, scratch = tmp_path / f"out-{number}", tmp_path / f"scratch-{number}"
        output.mkdir()
        scratch.mkdir()
        events = Events(None)
        context = Context("i", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
        columns = {"text": 1, "target": 2}
        config = IngestConfig.model_validate(
            {"source": f"{number}.tsv", "header": False, "columns": columns, "max_rejected": 0.9}
            | {"languages": {"text": "zh", "target": "en"}, **options}
        )
        result = Ingest(config).run(context, {"apart": apart})
        check_accounts("i", result, output)
        made = loose_artifact(output, rows=result.rows, properties=dict(result.properties))
        rejected[str(made.folder)] = dict(result.rejected)
        return made

    rejected: dict[str, dict[str, int]] = {}
    run.rejected = rejected  # type: ignore[attr-defined]
    return run


def rows_of(artifact: Artifact) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in artifact.files("rows/*.parquet")])


def sentences(count: int, name: str = "s") -> Rows:
    return [(f"第{n}个句子{name}", f"sentence {n} of {name}") for n in range(count)]


def test_what_one_corpus_holds_out_no_other_trains_on(make: Make) -> None:
    first = make(sentences(60), split={"valid": 5, "test": 10})
    held = rows_of(first).filter(pl.col("split") != "train")
    learnt = rows_of(first).filter(split="train")["text"].to_list()
    assert len(held) == 15
    # The same sentences with other punctuation, in traditional characters, with other targets.
    written = [(f"{text.replace('个', '個')}！", "another") for text in held["text"]]
    trained = [(f"{text}。", "another") for text in learnt]
    second = make(
        [*written, *trained, *sentences(40, "t")], (first,), split={"valid": 10, "test": 20}
    )
    assert make.rejected[str(second.folder)] == {"source is held out elsewhere": 15}  # type: ignore[attr-defined]
    rows = rows_of(second)
    held_here = rows.filter(pl.col("split") != "train")
    assert len(held_here) == 30 and all("t" in text for text in held_here["text"])
    assert len(rows.filter(pl.col("text").str.ends_with("。"))) == 45


def test_a_declared_test_row_that_another_corpus_trains_on_is_left_out(
    make: Make, tmp_path: Path
) -> None:
    first = make(sentences(20))
    (tmp_path / "test.tsv").write_text("第3个句子s\tx\n新的\ty\n")
    second = make([], (first,), source={"test": "test.tsv"})
    assert rows_of(second)["text"].to_list() == ["新的"]
    assert make.rejected[str(second.folder)] == {"source is in training elsewhere": 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("deduplicate", "left"),
    [
        ("normalized", ["another sentence"]),
        ("exact", ["Sentence 3 of s!", "another sentence"]),
        ("none", ["Sentence 3 of s!", "another sentence", "another sentence"]),
    ],
)
def test_a_pair_that_another_corpus_trains_on_is_not_learnt_twice(
    make: Make, deduplicate: str, left: list[str]
) -> None:
    """With the same id, both could not be in one set of features."""
    first = make(sentences(20), deduplicate=deduplicate)
    source, target = sentences(20)[3]
    rows = [
        (source, target), (source, "Sentence 3 of s!"),
        (source, "another sentence"), (source, "another sentence"),
    ]  # fmt: skip
    second = make(rows, (first,), deduplicate=deduplicate)
    table = rows_of(second)
    assert sorted(table["target"]) == left
    assert not set(table["id"]) & set(rows_of(first)["id"])
    counts = make.rejected[str(second.folder)]  # type: ignore[attr-defined]
    assert counts["pair is in training elsewhere"] == (2 if deduplicate == "normalized" else 1)


def test_rows_of_one_source_become_one_with_several_references(make: Make) -> None:
    rows = [(a, f"{b} {n}") for a, b in sentences(30) for n in ("one", "two", "three", "four")]
    made = make(rows, split={"valid": 3, "test": 5}, references=2)
    table = rows_of(made)
    assert dict(table.group_by("split").len().iter_rows()) == {"train": 88, "valid": 3, "test": 5}
    assert make.rejected[str(made.folder)] == {"further reference": 24}  # type: ignore[attr-defined]
    test = table.filter(pl.col("split") != "train")
    for row in test.iter_rows(named=True):
        start = row["target"].removesuffix(" one")
        assert row["target_2"] == f"{start} two" and row["target_3"] == f"{start} three"
    train = table.filter(split="train")
    assert train["target_2"].null_count() == train["target_3"].null_count() == len(train)
    assert test["id"].n_unique() == 8


def test_traditional_and_simplified_are_near_duplicates_in_chinese_alone(make: Make) -> None:
    rows = [("我們剪頭髮。", "We cut hair."), ("我们剪头发", "we cut hair!")]
    assert rows_of(make(rows))["text"].to_list() == ["我們剪頭髮。"]
    assert len(rows_of(make(rows, languages={"text": "ja", "target": "en"}))) == 2
    assert len(rows_of(make(rows, deduplicate="exact"))) == 2


def test_constants_are_columns(make: Make) -> None:
    table = rows_of(make(sentences(4), constants={"corpus": "x", "licence": "CC-BY-2.0"}))
    assert set(table["corpus"]) == {"x"} and set(table["licence"]) == {"CC-BY-2.0"}
    for wrong, message in (
        ({"split": "test"}, "split is a name that the pipeline uses"),
        ({"target": "x"}, "target cannot be the same in all rows"),
    ):
        with pytest.raises(ValidationError, match=message):
            make(sentences(1), constants=wrong)
    with pytest.raises(ValidationError, match="constants: and columns: both have mine"):
        make(sentences(1), columns={"text": 1, "target": 2, "mine": 1}, constants={"mine": "x"})
