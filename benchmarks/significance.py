"""Intervals and paired tests compared with sacreBLEU's: 10,000 segments, BLEU, chrF and TER.

Both receive the statistics of every segment, so that only the resampling is timed; intervals and
p-values must be the same.

    python benchmarks/significance.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import Result, _bootstrap_resample, _paired_ar_test, _paired_bs_test

from stages.measures.significance import SEED, compare, intervals
from stages.measures.statistics import statistic

NAMES = ("bleu", "chrf", "ter")


def corpus(count: int) -> tuple[list[str], list[str], list[str]]:
    """References of 5 to 30 words, and two systems that omit a fifth of them, or a little more."""
    source = random.Random(1)
    words = [f"word{n}" for n in range(3000)]
    references = [" ".join(source.choices(words, k=source.randint(5, 30))) for _ in range(count)]

    def system(share: float) -> list[str]:
        return [
            " ".join(word for word in row.split() if source.random() > share) for row in references
        ]

    return references, system(0.2), system(0.203)


class Given:
    """A metric of sacreBLEU with precomputed statistics."""

    def __init__(self, metric: Any, rows: list[list[float]]) -> None:
        self.metric, self.rows = metric, rows

    def _extract_corpus_statistics(self, *_: Any) -> list[list[float]]:
        return self.rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.metric, name)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--segments", type=int, default=10_000)
    command.add_argument("--rounds", type=int, default=5)
    options = command.parse_args()
    references, first, second = corpus(options.segments)
    measures = {name: statistic(name, "13a") for name in NAMES}
    ours, theirs = (
        {
            name: measure.segments({"hypothesis": hypotheses, "reference": references})
            for name, measure in measures.items()
        }
        for hypotheses in (first, second)
    )
    peers = {}
    for name, metric in zip(NAMES, (BLEU(), CHRF(), TER()), strict=True):
        kind = float if name == "ter" else int
        rows, others = (
            [list(map(kind, row)) for row in side[name].tolist()] for side in (ours, theirs)
        )
        baseline = others, Result(metric._aggregate_and_compute(others).score)
        peers[name] = Given(metric, rows), baseline

    def theirs_intervals() -> dict[str, Any]:
        bounds = {}
        for name, (metric, _) in peers.items():
            scores = np.sort([s.score for s in _bootstrap_resample(metric.rows, metric)[1]])
            bounds[name] = (float(scores[25]), float(scores[974]))
        return bounds

    def paired(test: Callable[..., Any]) -> dict[str, float]:
        metrics = {name: metric for name, (metric, _) in peers.items()}
        baselines = {name: baseline for name, (_, baseline) in peers.items()}
        _, results = test(baselines, "ours", first, None, metrics, seed=SEED)
        return {name: result.p_value for name, result in results.items()}

    contenders: dict[str, Callable[[], Any]] = {
        "sacreBLEU, intervals of 1,000 resamples": theirs_intervals,
        "ours, intervals": lambda: intervals(measures, ours),
        "sacreBLEU, paired bootstrap of 1,000": lambda: paired(_paired_bs_test),
        "sacreBLEU, paired randomisation of 10,000": lambda: paired(_paired_ar_test),
        "ours, both paired tests": lambda: compare(measures, ours, theirs),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - started)
    peer_bounds, _, bootstrap, randomised, comparisons = results.values()
    for name in NAMES:
        near = np.allclose(peer_bounds[name], results["ours, intervals"][name], rtol=1e-6)
        same = comparisons[name].p_bootstrap == bootstrap[name]
        if not (near and same and comparisons[name].p_randomisation == randomised[name]):
            sys.exit(f"{name} differs")
    print("| contender | seconds (median) | seconds of each round |\n|---|---:|---|")
    for name, times in seconds.items():
        listed = ", ".join(f"{value:.2f}" for value in times)
        print(f"| {name} | {statistics.median(times):.2f} | {listed} |")
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    first_pair, second_pair = list(middle.values())[:2], list(middle.values())[2:]
    print(f"intervals {first_pair[0] / first_pair[1]:.1f} times as fast")
    print(f"paired tests {sum(second_pair[:2]) / second_pair[2]:.1f} times as fast")


if __name__ == "__main__":
    main()
