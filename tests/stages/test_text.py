"""The text stage: declared steps are applied in order, and every row is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from model.modalities.text import TextProcessor
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.running.executor import check_accounts
from pipelines.stage import Context, Result
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.rows.shards import read_rows
from stages.text.class_counts import merged_counts
from stages.text.options import TextConfig
from stages.text.stage import Text

PAIRS = [
    ("今天天气很好。", "The weather is nice today."),
    ("我很喜欢　散步", "I like\u00a0going for a walk"),
    ("他们在公园里ｗａｌｋ", "They walk in the park"),
    ("她很忙\u200b", "She is busy\x07"),
] * 4


def records(folder: Path, pairs: list[tuple[str, str]], labels: list[str]) -> Artifact:
    (folder / "rows").mkdir(parents=True)
    rows = [
        {
            "id": f"{n:04d}", "split": "train" if n % 4 else "test", "task": "translate",
            "text": text, "target": target, "position": f"a.tsv:{n + 1}",
        }
        for n, (text, target) in enumerate(pairs)
    ]  # fmt: skip
    for shard in range(2):
        path = folder / "rows" / f"{shard:05d}-of-00002.parquet"
        pl.DataFrame(rows[shard::2]).write_parquet(path)
    facts = {
        "languages": {"text": "zh", "target": "en"}, "labels": labels, "modalities": ["text"],
    }  # fmt: skip
    properties = {"tasks": {"translate": facts}}
    return loose_artifact(folder, rows=len(rows), properties=properties, digest="0" * 64)


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., tuple[Artifact, Result]]:
    def run(
        pairs: list[tuple[str, str]] = PAIRS, labels: tuple[str, ...] = (), **options: Any
    ) -> tuple[Artifact, Result]:
        output, scratch = tmp_path / "output", tmp_path / "scratch"
        output.mkdir()
        scratch.mkdir()
        events = Events(None)
        context = Context("text", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
        config = TextConfig.model_validate({"vocabulary": {"size": 90}} | options)
        source = records(tmp_path / "records", pairs, list(labels))
        result = Text(config).run(context, {"records": (source,), "model": ()})
        check_accounts("text", result, output)
        return loose_artifact(output, rows=result.rows), result

    return run


def test_segmentation_and_stop_words(tmp_path: Path, process: Callable[..., Any]) -> None:
    (tmp_path / "stop.txt").write_text("很\n在\n", encoding="utf-8")
    artifact, _ = process(
        normalize={"source": "nfkc"},
        segment={"source": "jieba"},
        stopwords={"source": "stop.txt", "target": ["the"]},
        lowercase={"target": True},
    )
    processor = TextProcessor.load(artifact.folder / "text")
    assert processor.settings.tasks == ("translate",)
    assert processor.settings.source.stopwords == ("很", "在")
    prepared = processor.prepare(pl.Series([PAIRS[0][0], PAIRS[2][0]]), "source").to_list()
    assert prepared == ["今天天气 好 。", "他们 公园 里 walk"]
    assert processor.prepare(pl.Series(["The end of the day"]), "target")[0] == "end of day"
    rows = read_rows(artifact).sort("id")
    source_ids = rows["source_ids"].to_list()
    encoded = processor.encode([text for text, _ in PAIRS], "source")
    assert source_ids == [encoded.row(n) for n in range(len(PAIRS))]
    assert "very" not in processor.subwords["source"].decode(source_ids[0])


def test_references_are_single_lines_as_written(process: Callable[..., Any]) -> None:
    artifact, _ = process(lowercase={"target": True})
    references = read_rows(artifact).sort("id")["reference"].to_list()[:4]
    assert references == [
        "The weather is nice today.", "I like going for a walk", "They walk in the park",
        "She is busy",
    ]  # fmt: skip


def test_vocabulary_is_of_the_training_split_alone(process: Callable[..., Any]) -> None:
    # Rows 0, 4, 8 and 12 are the test split: no other pair has the characters of the first.
    artifact, _ = process()
    pieces = TextProcessor.load(artifact.folder / "text").subwords["source"]
    vocabulary = {pieces.id_to_piece(n) for n in range(pieces.get_piece_size())}
    assert "忙" in vocabulary and not {"天", "气"} & {c for piece in vocabulary for c in piece}


def test_filters_count_and_keep_aside(process: Callable[..., Any]) -> None:
    many = " ".join("0123456789" * 4)
    pairs = [*PAIRS, ("长" * 150, "long"), ("latin", "latin"), ("好", many)]
    artifact, result = process(
        pairs,
        filter={"max_characters": 100, "script": {"source": "Han"}, "max_ratio": 6.0},
    )
    assert result.rows_in == len(pairs)
    assert result.rejected == {
        "lengths do not fit": 1, "source is not in Han script": 1, "too long": 1,
    }  # fmt: skip
    assert len(read_rows(artifact)) == len(PAIRS)


def test_too_many_rejects_fail(process: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="more than max_rejected"):
        process(filter={"max_characters": 20}, vocabulary={"size": 40}, max_rejected=0.1)


def test_labels_are_counted_as_references_have_them(
    process: Callable[..., tuple[Artifact, Result]],
) -> None:
    pairs = [("一", "a \t  cat"), ("二", "a dog"), ("三", "a cat"), ("四", "a dog")] * 4
    _, result = process(pairs, labels=("a dog", "a \t  cat", "a cat", "a cow"))
    facts = result.properties["tasks"]["translate"]
    assert facts["labels"] == ["a dog", "a cat", "a cow"]
    # The first of every four rows is in the test split.
    assert facts["training_rows"] == {"a cat": 4, "a dog": 8}


def test_counts_merge_in_any_order() -> None:
    parts = [{"t": {"b": 1, "a": 2}}, {}, {"s": {"x": 1}, "t": {"a": 1}}]
    whole = {"s": {"x": 1}, "t": {"a": 3, "b": 1}}
    assert merged_counts(parts) == merged_counts([merged_counts(parts[:1]), *parts[1:]]) == whole
    assert list(merged_counts(parts[::-1])["t"]) == ["a", "b"]
