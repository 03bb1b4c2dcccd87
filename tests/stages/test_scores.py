"""Scores of classifications and of speech: scikit-learn and jiwer are the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import polars as pl
import pytest
from sacrebleu.metrics import BLEU
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import loose_artifact
from stages.score.options import ScoreConfig
from stages.score.stage import Score
from stages.score.statistics import CalibrationStatistic, ConfusionStatistic, statistic
from stages.score.variety import distinct, self_bleu, variety

LABELS = ("cat", "dog", "owl", "yak")


@pytest.fixture(scope="module")
def guesses() -> dict[str, Any]:
    """300 rows of four labels, one of which never occurs, with probabilities."""
    random = np.random.default_rng(4)
    truth = random.integers(0, 3, 300)
    logits = random.standard_normal((300, 4)) + 1.5 * np.eye(4)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)
    return {
        "truth": truth,
        "all": probabilities,
        "reference": [LABELS[n] for n in truth],
        "hypothesis": [LABELS[n] for n in order[:, 0]],
        "labels": [[LABELS[n] for n in row[:2]] for row in order],
        "probabilities": np.take_along_axis(probabilities, order, axis=1)[:, :2].tolist(),
    }


def score(metric: Any, table: dict[str, Any]) -> float:
    measure = statistic(metric, "13a", LABELS)
    return measure.score(measure.segments(table).sum(axis=0))


def test_classification_equals_scikit_learns(guesses: dict[str, Any]) -> None:
    truth, predicted = guesses["reference"], guesses["hypothesis"]
    options = {"labels": list(LABELS), "zero_division": 0}
    assert score("accuracy", guesses) == accuracy_score(truth, predicted)
    assert score("macro_f1", guesses) == pytest.approx(
        f1_score(truth, predicted, average="macro", **options)
    )
    few = [n for n, pair in enumerate(zip(truth, predicted, strict=True)) if LABELS[0] not in pair]
    part = {name: [column[n] for n in few] for name, column in guesses.items() if name != "all"}
    assert score("macro_f1", part) == pytest.approx(
        f1_score(part["reference"], part["hypothesis"], average="macro", zero_division=0)
    )
    top = top_k_accuracy_score(guesses["truth"], guesses["all"], k=2, labels=range(4))
    assert score("top_accuracy", guesses) == pytest.approx(top)
    confusion = ConfusionStatistic(LABELS)
    total = confusion.segments(guesses).sum(axis=0)
    matrix = confusion.matrix(total)
    assert np.array_equal(matrix[:, :4], confusion_matrix(truth, predicted, labels=LABELS))
    expected = precision_recall_fscore_support(truth, predicted, **options)
    for row, *values in zip(confusion.by_label(total), *expected, strict=True):
        measures = [row.precision, row.recall, row.f1, row.support]
        assert measures == pytest.approx(values)


def test_calibration_is_the_published_sum(guesses: dict[str, Any]) -> None:
    """Guo et al., 2017, equation 3, written out."""
    confidence = np.array([row[0] for row in guesses["probabilities"]])
    right = np.array(guesses["hypothesis"]) == np.array(guesses["reference"])
    expected = 0.0
    for low in np.arange(0, 1, 0.1):
        in_bin = (confidence >= low - 1e-12) & (confidence < low + 0.1 - 1e-12)
        if in_bin.any():
            gap = abs(right[in_bin].mean() - confidence[in_bin].mean())
            expected += in_bin.mean() * gap
    assert score("calibration_error", guesses) == pytest.approx(expected)
    bins = CalibrationStatistic()
    listed = bins.bins(bins.segments(guesses).sum(axis=0))
    assert sum(row.rows for row in listed) == 300


def test_error_rates_are_jiwers() -> None:
    references = ["the cat sat", "a b c d", "七 八", "hello", "one two"]
    hypotheses = ["the cat", "a x c d e", "七八", "", "one two"]
    table = {"reference": references, "hypothesis": hypotheses}
    assert score("wer", table) == pytest.approx(jiwer.wer(references, hypotheses))
    assert score("cer", table) == pytest.approx(jiwer.cer(references, hypotheses))


def test_distinct_and_self_bleu() -> None:
    outputs = [["a", "b", "a"], ["a", "b"]]
    assert distinct(outputs, 1) == 2 / 5
    assert distinct(outputs, 2) == 2 / 3
    assert distinct([["a"]], 2) is None
    metric = BLEU(effective_order=True)
    same = ["the cat sat on the mat"] * 3
    assert self_bleu(same, metric) == pytest.approx(100)
    assert self_bleu(["one two three four", "five six seven eight"], metric) < 1


def test_variety_of_known_outputs() -> None:
    rows = [
        {
            "task": "t", "kind": kind, "temperature": 1.0, "id": id, "sample": n,
            "hypothesis": text, "reference": "the cat sat on the mat",
        }
        for kind, texts in (
            ("mean", ["the cat sat on the mat"]),
            ("latent", ["the cat sat on the mat", "a dog ran in a park"]),
        )
        for id in ("x", "y")
        for n, text in enumerate(texts)
    ]  # fmt: skip
    mean, latent = variety(pl.DataFrame(rows), {"t": "13a"})
    assert mean.bleu == pytest.approx(100) and "self_bleu" not in mean.to_json()
    assert latent.best_bleu == pytest.approx(100)
    assert latent.bleu is not None and latent.bleu < 60
    assert latent.self_bleu is not None and latent.self_bleu < 5
    assert latent.distinct_1 == pytest.approx(10 / 12)
    (word,) = variety(pl.DataFrame(rows[:1]).with_columns(reference=pl.lit("cat")), {"t": "13a"})
    assert word.bleu is None


@pytest.fixture
def scored(tmp_path: Path, guesses: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    def run(**options: Any) -> dict[str, Any]:
        folder = tmp_path / "predictions"
        (folder / "rows").mkdir(parents=True)
        table = pl.DataFrame(
            {key: guesses[key] for key in ("reference", "hypothesis", "labels", "probabilities")}
        ).with_row_index("n")
        table = table.with_columns(
            id=pl.format("{}", "n"),
            split=pl.lit("test"),
            task=pl.lit("animals"),
            modalities=pl.when(pl.col("n") % 3 == 0)
            .then(pl.lit("image"))
            .otherwise(pl.lit("text")),
            where=pl.when(pl.col("n") < 100).then(pl.lit("zoo")),
        )
        table.write_parquet(folder / "rows" / "a.parquet")
        facts = {
            "languages": {}, "labels": list(LABELS), "modalities": ["image", "text"],
            "training_rows": {LABELS[1]: 7},
        }  # fmt: skip
        properties = {
            "tasks": {"animals": facts}, "scored_references": False, "diversity": False,
        }  # fmt: skip
        source = loose_artifact(folder, rows=300, properties=properties)
        output, scratch = tmp_path / "output", tmp_path / "scratch"
        output.mkdir()
        scratch.mkdir()
        events = Events(None)
        context = Context("score", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
        config = ScoreConfig.model_validate(options)
        assert Score(config).run(context, {"predictions": (source,), "records": ()}).rows == 300
        return {
            name: json.loads((output / f"{name}.json").read_text())
            for name in ("scores", "classification")
        }

    return run


def test_slices_are_scored_apart(
    scored: Callable[..., dict[str, Any]], guesses: dict[str, Any]
) -> None:
    results = scored(slices=["modalities", "where", "where+modalities"], metrics=["accuracy"])
    right = np.array(guesses["hypothesis"]) == np.array(guesses["reference"])
    number = np.arange(300)
    values = {json.dumps(row["slice"]): (row["value"], row["n"]) for row in results["scores"]}
    image = number % 3 == 0
    assert values["null"] == (right.mean(), 300)
    assert values['{"modalities": "image"}'] == pytest.approx((right[image].mean(), 100))
    zoo_images = image & (number < 100)
    name = '{"modalities": "image", "where": "zoo"}'
    assert values[name] == pytest.approx((right[zoo_images].mean(), 34))
    # A column with only one value gives no slice.
    assert '{"where": "zoo"}' not in values and len(values) == 5


def test_metrics_fit_the_task(scored: Callable[..., dict[str, Any]]) -> None:
    results = scored()
    names = {row["metric"] for row in results["scores"]}
    assert names == {"accuracy", "top_accuracy", "macro_f1", "calibration_error"}
    (entry,) = results["classification"]
    assert entry["labels"] == list(LABELS) and len(entry["matrix"]) == 4
    assert [row["training_rows"] for row in entry["by_label"]] == [0, 7, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["bleu"]}, "has none for task 'animals'; add accuracy"),
        ({"slices": ["colour"]}, "slices: names colour; the predictions have"),
    ],
)
def test_what_cannot_be_scored(
    scored: Callable[..., dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scored(**options)
