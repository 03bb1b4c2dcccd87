"""Scores from sums, compared with sacreBLEU's own corpus scores and signatures."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from stages.measures.metrics import bleu_tokenizer
from stages.measures.statistics import statistic
from stages.score.counting import SumStatistics

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "walks", "in", "park", "today", "is", "good"]
WORDS += ["今天", "天气", "很好", ",", ".", "!"]


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    source = random.Random(1)
    references = [" ".join(source.choices(WORDS, k=source.randint(1, 14))) for _ in range(120)]
    hypotheses = [
        " ".join(w for w in row.split() if source.random() > 0.2) or "" for row in references
    ]
    return {"hypothesis": hypotheses, "reference": references}


REFERENCE: dict[str, Any] = {
    "bleu": lambda: BLEU(tokenize="zh"),
    "chrf": CHRF,
    "ter": TER,
}


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_equal_to_sacrebleu(table: dict[str, list[str]], metric: Any) -> None:
    reference = REFERENCE[metric]()
    expected = reference.corpus_score(table["hypothesis"], [table["reference"]])
    ours = statistic(metric, "zh")
    assert ours.score(ours.segments(table).sum(axis=0)) == expected.score
    assert ours.signature() == str(reference.get_signature())


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter", "perplexity", "calibration_error"])
def test_sums_do_not_depend_on_how_segments_were_spread(
    table: dict[str, list[str]], metric: Any
) -> None:
    """To the last bit, also for fractions: TER's mean length of three references, probabilities and
    their logarithms."""
    source = random.Random(2)
    count, references = len(table["reference"]), table["reference"]
    further: dict[str, list[Any]] = {
        "second": references[1:] + references[:1],
        "third": references[2:] + references[:2],
        "reference_log_probability": [round(-50 * source.random(), 4) for _ in range(count)],
        "reference_tokens": [source.randint(1, 20) for _ in range(count)],
        "probabilities": [[round(source.random(), 6)] for _ in range(count)],
    }
    measure = statistic(metric, "13a", references=("second", "third"))
    rows = measure.segments(table | further)
    combine = SumStatistics()

    def summed(cuts: list[int]) -> tuple[int, list[float]]:
        parts = [part for part in np.split(rows, cuts) if len(part)]
        accumulators = [
            combine.add_input(combine.create_accumulator(), (len(p), p.sum(axis=0).tolist()))
            for p in parts
        ]
        return combine.extract_output(combine.merge_accumulators(accumulators))

    assert summed([]) == summed([1, 50, 51]) == summed(list(range(120)))


def test_ratios() -> None:
    table: dict[str, list[Any]] = {
        "hypothesis": ["a", "b", "c"],
        "reference": ["a", "x", "c"],
        "reference_correct": [3, 1, 0],
        "reference_tokens": [4, 2, 2],
        "reference_log_probability": [-2.0, -1.0, -1.0],
    }
    values = {
        name: statistic(name, "13a").score(statistic(name, "13a").segments(table).sum(axis=0))
        for name in ("exact_match", "token_accuracy", "perplexity")
    }
    assert values == pytest.approx(
        {"exact_match": 2 / 3, "token_accuracy": 0.5, "perplexity": float(np.exp(0.5))}
    )


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("zh_Hant", "zh"),
        ("en", "13a"),
        (None, "13a"),
        ("zha", "13a"),
    ],
)
def test_tokenizer_by_language(language: str | None, tokenizer: str) -> None:
    assert bleu_tokenizer(language) == tokenizer
