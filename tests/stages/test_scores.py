"""Scores of classifications and of speech: scikit-learn and jiwer are the reference."""

from __future__ import annotations

import json
import random
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
from stages.measures.statistics import CalibrationStatistic, ConfusionStatistic, statistic
from stages.score.options import ScoreConfig
from stages.score.segments import TaskScoring
from stages.score.stage import Score
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


def outputs_of(kind: str, texts: dict[str, list[str]], **setting: Any) -> pl.DataFrame:
    """Rows of one way of making several outputs, by source."""
    rows = [
        {"task": "t", "id": id, "sample": number, "hypothesis": text}
        for id, several in texts.items()
        for number, text in enumerate(several)
    ]
    defaults = {"temperature": 0.0, "drawn": len(next(iter(texts.values()))), **setting}
    made = {name: pl.lit(value) for name, value in defaults.items() if name != "weight"}
    weight = pl.lit(setting.get("weight"), pl.Float64)
    return pl.DataFrame(rows).with_columns(**made, kind=pl.lit(kind), weight=weight)


def test_variety_of_known_outputs() -> None:
    good, other = "the cat sat on the mat", "a dog ran in a park"
    table = pl.concat(
        [
            outputs_of("mean", {"x": [good], "y": [good]}),
            outputs_of("latent", {"x": [good, other], "y": [good, other]}),
        ]
    ).with_columns(reference=pl.lit(good))
    scoring = TaskScoring(("bleu",), "13a", ())
    mean, latent = variety(table, {"t": scoring})
    assert mean.bleu == pytest.approx(100) and "self_bleu" not in mean.to_json()
    assert mean.rows == 2 and latent.samples == latent.drawn == 2
    assert latent.best_bleu == latent.coverage == pytest.approx(100)
    assert latent.bleu is not None and latent.bleu < 60
    assert latent.self_bleu is not None and latent.self_bleu < 5
    assert latent.distinct_1 == pytest.approx(10 / 12)
    words = table.filter(kind="mean").with_columns(reference=pl.lit("cat"))
    (word,) = variety(words, {"t": scoring})
    assert word.bleu is None


def test_variety_is_what_sacrebleu_says_of_it() -> None:
    """Corpus and sentence BLEU by sacreBLEU itself, and its bootstrap."""
    chance = random.Random(4)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "in", "mat", "park", "big"]

    def sentence(count: int) -> str:
        return " ".join(chance.choice(words) for _ in range(count))

    ids = [f"row {number:02d}" for number in range(30)]
    wanted = {
        id: [sentence(8), sentence(8) if number % 2 else None] for number, id in enumerate(ids)
    }

    def near(id: str, changes: int) -> str:
        said = str(wanted[id][0]).split()
        for place in chance.sample(range(8), changes):
            said[place] = chance.choice(words)
        return " ".join(said)

    drawn = {id: [near(id, 4) for _ in range(3)] for id in ids}
    selected = {id: [near(id, 2) for _ in range(3)] for id in ids}
    table = pl.concat(
        [
            outputs_of("selection", selected, temperature=0.5, weight=0.3, drawn=9),
            outputs_of("sampling", drawn, temperature=0.5),
            outputs_of("sampling", {id: [text[0]] * 3 for id, text in drawn.items()}),
        ]
    )
    references = pl.DataFrame(
        [{"id": id, "reference": first, "target_2": other} for id, (first, other) in wanted.items()]
    )
    scoring = TaskScoring(("bleu",), "13a", (), ("target_2",))
    shuffled = table.join(references, "id").sample(fraction=1, shuffle=True, seed=3)
    found = {(each.kind, each.temperature): each for each in variety(shuffled, {"t": scoring})}
    chosen, sampled = found["selection", 0.5], found["sampling", 0.5]
    streams = [[wanted[id][0] for id in ids], [wanted[id][1] for id in ids]]
    corpora = [
        BLEU().corpus_score([selected[id][number] for id in ids], streams).score
        for number in range(3)
    ]
    assert chosen.bleu == pytest.approx(np.mean(corpora))
    single = BLEU(effective_order=True)

    def best_of(id: str) -> str:
        known = [reference for reference in wanted[id] if reference]
        return max(selected[id], key=lambda text: single.sentence_score(text, known).score)

    best = BLEU().corpus_score([best_of(id) for id in ids], streams, n_bootstrap=1000)
    assert chosen.best_bleu == pytest.approx(best.score)
    low, high = chosen.ci95["best_bleu"]
    assert low < best.score < high and (high - low) / 2 == pytest.approx(best._ci, abs=1e-3)
    nearest = [
        max(single.sentence_score(text, [reference]).score for text in selected[id])
        for id in ids
        for reference in wanted[id]
        if reference
    ]
    assert chosen.coverage == pytest.approx(np.mean(nearest))
    # The other sampling has a self-BLEU of 100: it is not what a selection stands beside.
    assert chosen.beside == 0.5 and sampled.beside is None
    gains = {gain.metric: gain for gain in chosen.gains}
    assert gains.keys() == {"bleu", "best_bleu", "coverage"}
    assert sampled.bleu is not None and chosen.bleu is not None
    assert gains["bleu"].difference == pytest.approx(chosen.bleu - sampled.bleu)
    assert gains["bleu"].p < 0.05 and gains["bleu"].ci95[0] > 0


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
