"""Intervals and paired tests, compared with sacreBLEU's library and its command line."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from stages.measures import significance
from stages.measures.significance import bootstrap_sums, compare, intervals, randomised_sums
from stages.measures.statistics import statistic

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "walks", "in", "park", "today", ",", "."]
NAMES = ("bleu", "chrf", "ter")


def worse(text: str, source: random.Random, share: float) -> str:
    return " ".join(word for word in text.split() if source.random() > share)


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[str]]:
    """Two references, and two systems of which the second is a little worse."""
    source = random.Random(7)
    first = [" ".join(source.choices(WORDS, k=source.randint(3, 14))) for _ in range(203)]
    return {
        "reference": first,
        "second": [worse(row, source, 0.1) for row in first],
        "ours": [worse(row, source, 0.2) for row in first],
        "theirs": [worse(row, source, 0.24) for row in first],
    }


def measured(corpus: dict[str, list[str]], system: str, references: tuple[str, ...] = ()) -> Any:
    measures = {name: statistic(name, "13a", (), references) for name in NAMES}
    table = {**corpus, "hypothesis": corpus[system]}
    return measures, {name: measure.segments(table) for name, measure in measures.items()}


@pytest.mark.parametrize("further", [(), ("second",)])
def test_intervals_are_sacrebleus(corpus: dict[str, list[str]], further: tuple[str, ...]) -> None:
    measures, segments = measured(corpus, "ours", further)
    bounds = intervals(measures, segments)
    references = [corpus[name] for name in ("reference", *further)]
    for name, metric in zip(NAMES, (BLEU(), CHRF(), TER()), strict=True):
        expected = metric.corpus_score(corpus["ours"], references, n_bootstrap=1000)
        assert (bounds[name][1] - bounds[name][0]) / 2 == pytest.approx(expected._ci, rel=1e-6)
        assert bounds[name][0] < expected.score < bounds[name][1]


@pytest.mark.parametrize("further", [(), ("second",)])
@pytest.mark.parametrize("test", ["bs", "ar"])
def test_p_values_are_those_of_the_sacrebleu_command(
    corpus: dict[str, list[str]], tmp_path: Path, test: str, further: tuple[str, ...]
) -> None:
    for name, lines in corpus.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    references = [str(tmp_path / name) for name in ("reference", *further)]
    command = [
        sys.executable, "-m", "sacrebleu", *references, "-i", str(tmp_path / "theirs"),
        str(tmp_path / "ours"), "-m", *NAMES, f"--paired-{test}", "--format", "text", "-w", "6",
    ]  # fmt: skip
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    table = [line for line in completed.stdout.splitlines() if "│" in line]
    theirs, ours, p_values = (
        [re.search(r"\d+\.\d+", cell) for cell in line.split("│")[2:5]]
        for line in (table[1], table[2], table[3])
    )
    measures, our_segments = measured(corpus, "ours", further)
    comparisons = compare(measures, our_segments, measured(corpus, "theirs", further)[1])
    assert any(0.01 < entry.p_bootstrap < 0.9 for entry in comparisons.values())
    for column, entry in enumerate(comparisons.values()):
        p = entry.p_bootstrap if test == "bs" else entry.p_randomisation
        for value, match in ((p, p_values), (entry.value, ours), (entry.baseline, theirs)):
            printed = match[column]
            assert printed is not None
            digits = len(printed[0].partition(".")[2])
            assert round(value, digits) == float(printed[0])
        assert entry.ci95[0] <= entry.value - entry.baseline <= entry.ci95[1]


def test_many_blocks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).integers(0, 9, (101, 3)).astype(float)
    others = np.random.default_rng(1).integers(0, 9, (101, 3)).astype(float)
    whole = bootstrap_sums([numbers, others], 200), randomised_sums([numbers], [others], 200)
    monkeypatch.setattr(significance, "DRAWS", 101 * 40)
    monkeypatch.setattr(significance, "COINS", 101 * 40)
    parts = bootstrap_sums([numbers, others], 200), randomised_sums([numbers], [others], 200)
    assert list(significance.blocks(101, 200, 101 * 40)) == [40] * 5
    assert list(significance.blocks(101, 200, 101 * 40, 32)) == [32] * 6 + [8]
    for a, b in zip([*whole[0], *whole[1][0]], [*parts[0], *parts[1][0]], strict=True):
        assert np.array_equal(a, b)


def test_the_same_system_does_not_differ(corpus: dict[str, list[str]]) -> None:
    measures, segments = measured(corpus, "ours")
    for entry in compare(measures, segments, segments).values():
        assert entry.value == entry.baseline and entry.ci95 == (0, 0)
        assert entry.p == entry.p_bootstrap == entry.p_randomisation == 1


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """Under the null hypothesis, p is below 0.1 in a tenth of all cases."""
    random = np.random.default_rng(3)
    measures = {"accuracy": statistic("accuracy", "13a")}
    below = 0
    for _ in range(200):
        a, b = (
            np.stack([random.random(80) < 0.5, np.ones(80)], axis=1).astype(float) for _ in "ab"
        )
        below += compare(measures, {"accuracy": a}, {"accuracy": b})["accuracy"].p < 0.1
    assert 8 <= below <= 32


def test_one_changed_segment_is_no_evidence() -> None:
    """Every shuffle gives it to one of the systems, which then differ by as much; the strict
    comparison of sacreBLEU calls that significant."""
    rows = np.stack([np.tile([1.0, 0.0], 500), np.ones(1000)], axis=1)
    worse = rows.copy()
    worse[0, 0] = 0
    measures = {"accuracy": statistic("accuracy", "13a")}
    comparison = compare(measures, {"accuracy": worse}, {"accuracy": rows})["accuracy"]
    assert comparison.value - comparison.baseline == pytest.approx(-0.001)
    assert comparison.p == 1 and comparison.p_randomisation < 0.001
    many = rows.copy()
    many[:40:2, 0] = 0
    assert compare(measures, {"accuracy": many}, {"accuracy": rows})["accuracy"].p < 0.001


def test_p_is_that_of_all_shuffles() -> None:
    """Compared with the exact p, counted over all 2^12 ways to swap twelve segments."""
    random = np.random.default_rng(5)
    a, b = (
        np.stack([random.integers(0, 5, 12), np.full(12, 5)], axis=1).astype(float) for _ in "ab"
    )
    measures = {"accuracy": statistic("accuracy", "13a")}
    comparison = compare(measures, {"accuracy": a}, {"accuracy": b})["accuracy"]
    signs = np.array(list(itertools.product((1, -1), repeat=12)))
    differences = np.abs(signs @ (a[:, 0] - b[:, 0]))
    exact = (differences >= abs((a[:, 0] - b[:, 0]).sum())).mean()
    assert 0.02 < exact < 0.98
    assert comparison.p == pytest.approx(exact, abs=0.02)


def test_sparse_statistics_resample_as_dense_ones() -> None:
    labels = tuple("abcd")
    measure = statistic("macro_f1", "13a", labels)
    source = random.Random(2)
    reference = source.choices(labels, k=90)
    hypotheses = [row if source.random() < 0.7 else source.choice("abcdx") for row in reference]
    reference[5] = "nothing known"
    rows = measure.segments({"reference": reference, "hypothesis": hypotheses})
    sparse = measure.unpacked(measure.packed(rows))
    assert np.array_equal(sparse.toarray(), rows)
    assert np.array_equal(bootstrap_sums([sparse], 50)[0], bootstrap_sums([rows], 50)[0])
    assert intervals({"m": measure}, {"m": sparse}) == intervals({"m": measure}, {"m": rows})


def test_paired_test_of_the_library_has_the_same_mean_shape(corpus: dict[str, list[str]]) -> None:
    """The library with a number of resamples that is not its default: only the seed is shared."""
    names = {"BLEU": BLEU()}
    test = PairedTest(
        [("theirs", corpus["theirs"]), ("ours", corpus["ours"])],
        names, [corpus["reference"]], test_type="bs", n_samples=1000,
    )  # fmt: skip
    _, scores = test()
    measures, our_segments = measured(corpus, "ours")
    resampled = measures["bleu"].resampled(bootstrap_sums([our_segments["bleu"]])[0])
    assert resampled.mean() == pytest.approx(scores["BLEU"][1].mean, rel=1e-6)
