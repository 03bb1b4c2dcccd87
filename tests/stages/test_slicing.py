"""Slices by length and rarity, and a report's tables as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from pipelines.contracts.reports import Report
from pipelines.contracts.scores import Classification
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.report.tables import tables, write_tables
from stages.score.options import ScoreConfig
from stages.score.slicing import LENGTHS, RARITIES, bucket, natural, words
from stages.score.stage import Score


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (1, "1–4"), (4, "1–4"), (5, "5–19"), (99, "20–99"), (100, "100 or more")],
)
def test_buckets(number: int, expected: str) -> None:
    assert bucket(number, RARITIES) == expected


def test_an_empty_reference_is_a_short_one() -> None:
    assert bucket(0, LENGTHS) == "1–10"


def test_buckets_sort_by_their_numbers() -> None:
    names = [bucket(number, RARITIES) for number in (0, 1, 5, 20, 100)]
    shuffled = [names[index] for index in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=natural) == names
    assert sorted(["b2", "b10", "a"], key=natural) == ["a", "b2", "b10"]


@pytest.mark.parametrize("tokenizer", ["13a", "zh"])
def test_words_are_sacrebleus(tokenizer: str) -> None:
    text = "It's 今天 3.5% good, isn't it?"
    score = BLEU(tokenize=tokenizer).corpus_score([text], [[text]])
    assert len(words(text, tokenizer)) == score.ref_len


def artifact(folder: Path, rows: list[dict[str, Any]], properties: dict[str, Any]) -> Artifact:
    (folder / "rows").mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(folder / "rows" / "a.parquet")
    return loose_artifact(folder, rows=len(rows), properties=properties)


def scored(
    folder: Path, rows: list[dict[str, Any]], config: ScoreConfig, *records: Artifact
) -> list[dict[str, Any]]:
    """The scores that the stage computes from predictions."""
    facts = {"languages": {"target": "en"}, "labels": [], "modalities": ["text"]}
    properties = {"tasks": {"t": facts}, "scored_references": False, "diversity": False}
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir()
    scratch.mkdir()
    events = Events(None)
    context = Context("score", 0, folder, output, scratch, 1, events, BeamJobs({}, events))
    predictions = artifact(folder / "predictions", rows, properties)
    Score(config).run(context, {"predictions": (predictions,), "records": records})
    scores: list[dict[str, Any]] = json.loads((output / "scores.json").read_text())
    return scores


@pytest.mark.parametrize("further", [["a b c d", None], ["a b c d", "e"], [None, None]])
def test_signatures_count_references_as_sacrebleu_does(
    tmp_path: Path, further: list[str | None]
) -> None:
    hypotheses, references = ["a b c", "x y z w"], ["a b c d", "x y z"]
    rows = [
        {
            "id": str(n), "task": "t", "split": "test", "modalities": "text", "more": further[n],
            "hypothesis": hypotheses[n], "reference": references[n],
        }
        for n in range(2)
    ]  # fmt: skip
    config = ScoreConfig(metrics=["bleu", "chrf", "ter"], references=["more"], intervals=False)
    for score, metric in zip(scored(tmp_path, rows, config), (BLEU(), CHRF(), TER()), strict=True):
        expected = metric.corpus_score(hypotheses, [references, further])
        assert score["value"] == pytest.approx(expected.score)
        assert score["signature"] == str(metric.get_signature())


def test_scores_by_length_and_rarity(tmp_path: Path) -> None:
    texts = ["common word", "common unseen", "common " * 12, "rare word"]
    rows = [
        {
            "id": str(n), "task": "t", "split": "test", "modalities": "text",
            "reference": text.strip(), "hypothesis": text.strip() if n % 2 else "x",
        }
        for n, text in enumerate(texts)
    ]  # fmt: skip
    training = ["common word"] * 30 + ["rare"] * 3
    record_rows = [{"task": "t", "split": "train", "target": text} for text in training]
    record_rows.append({"task": "t", "split": "test", "target": "unseen"})
    records = artifact(tmp_path / "records", record_rows, {})
    config = ScoreConfig(metrics=["exact_match"], slices=["length", "rarity"])
    scores = scored(tmp_path, rows, config, records)
    by_slice = [(score["slice"], score["value"], score["n"]) for score in scores]
    assert by_slice == [
        (None, 0.5, 4),
        ({"length": "1–10"}, pytest.approx(2 / 3), 3),
        ({"length": "11–20"}, 0.0, 1),
        ({"rarity": "0"}, 1.0, 1),
        ({"rarity": "1–4"}, 1.0, 1),
        ({"rarity": "20–99"}, 0.0, 2),
    ]


@pytest.mark.parametrize(("slices", "given"), [(["rarity"], []), ([], ["records"])])
def test_rarity_and_records_go_together(slices: list[str], given: list[str]) -> None:
    with pytest.raises(ValueError, match="need each other"):
        Score(ScoreConfig(slices=slices)).check(given)


def test_tables_have_every_number(tmp_path: Path, finished: tuple[Path, Path]) -> None:
    (folder,) = finished[1].glob("small/latest")
    report = json.loads((folder / "report" / "report.json").read_text())
    scores = pl.read_csv(folder / "report" / "tables" / "scores.csv")
    assert scores["value"].to_list() == [score["value"] for score in report["scores"]]
    assert scores["ci95_low"].to_list() == [score["ci95"][0] for score in report["scores"]]
    curves = pl.read_parquet(folder / "report" / "tables" / "curves.parquet")
    assert curves["step"].to_list() == [point["step"] for point in report["curves"]["train"]]
    classified = Classification(
        task="t", split="test", labels=("a", "b"), matrix=((3, 1, 0), (0, 2, 4))
    )
    extended = Report.read(folder / "report").model_copy(update={"classification": (classified,)})
    confusion = tables(extended)["confusion"]
    assert [row["rows"] for row in confusion] == [3, 1, 0, 0, 2, 4]
    assert (confusion[5]["reference"], confusion[5]["hypothesis"]) == ("b", None)
    write_tables(extended, tmp_path / "tables")
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".csv", ".parquet"}
