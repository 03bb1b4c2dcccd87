"""Confidence intervals of scores, and whether two systems differ: resampled statistics.

The tests are sacreBLEU's, with its numbers: the same generator, seed, resamples and rounding, so
that intervals and p-values equal those of `sacrebleu --confidence`, `--paired-bs` and
`--paired-ar`. sacreBLEU copies the statistics of every resample; here a resample is how often each
segment was drawn, and the sums of many resamples, for all metrics together, are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.measures.statistics import Statistic

RESAMPLES, TRIALS = 1000, 10_000
"""sacreBLEU's own defaults for the bootstrap and for approximate randomisation."""
SEED = 12345
"""sacreBLEU's own default seed."""
DRAWS, COINS = 1 << 17, 1 << 22
"""Drawn segments, and coin tosses, in memory at a time: measured to be fast."""
TIE = 1e-9
"""Differences this close to each other, relative to their size, count as equal."""
Statistics = Mapping[str, Any]
"""By metric: an array (segments, statistics), which may be sparse."""


@dataclass(frozen=True)
class PairedTest:
    """Two corpus scores on the same segments, and whether they differ."""

    value: float
    baseline: float
    ci95: tuple[float, float]
    """Of the difference, from the paired bootstrap's resamples."""
    p: float
    """Paired approximate randomisation: the share of shuffles that differ at least as far as the
    systems do (Noreen, 1989; Riezler and Maxwell, 2005). Verdicts and gates use this one."""
    p_bootstrap: float
    """Paired bootstrap (Koehn, 2004), two-sided, as sacreBLEU's `--paired-bs`."""
    p_randomisation: float
    """As sacreBLEU's `--paired-ar`, which counts only shuffles that differ by more. If few segments
    changed, none can, and it is the smallest possible: with one of a thousand changed, 0.0001."""


def blocks(segments: int, resamples: int, together: int, step: int = 1) -> Iterator[int]:
    """Sizes of the blocks in which resamples are drawn: multiples of `step`, except the last."""
    size = max(1, together // max(1, segments) // step) * step
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def bootstrap_sums(
    columns: Sequence[Any], resamples: int = RESAMPLES, seed: int = SEED
) -> list[np.ndarray]:
    """For each (segments, statistics) the sums (resamples, statistics) over segments drawn with
    replacement; the same draws for all."""
    count = columns[0].shape[0]
    random = np.random.default_rng(seed)
    collected: list[list[np.ndarray]] = [[] for _ in columns]
    for rows in blocks(count, resamples, DRAWS):
        # The blocks together draw the same as one draw of all resamples.
        drawn = random.choice(count, size=(rows, count), replace=True)
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        times = times.reshape(rows, count).astype(np.float64)
        for sums, column in zip(collected, columns, strict=True):
            sums.append(times @ column)
    return [np.concatenate(sums) for sums in collected]


def randomised_sums(
    ours: Sequence[Any], theirs: Sequence[Any], trials: int = TRIALS, seed: int = SEED
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums (trials, statistics) of two systems, each segment swapped or not by a coin toss."""
    count = ours[0].shape[0]
    random = np.random.default_rng(seed)
    changes = [b - a for a, b in zip(ours, theirs, strict=True)]
    collected: list[list[np.ndarray]] = [[] for _ in ours]
    # NumPy takes bits from 32-bit words, and a block must use each word completely.
    for rows in blocks(count, trials, COINS, 32):
        swapped = random.integers(2, size=(rows, count), dtype=bool).astype(np.float64)
        for sums, change in zip(collected, changes, strict=True):
            sums.append(swapped @ change)
    moved = [np.concatenate(sums) for sums in collected]
    return [
        (a.sum(axis=0) + sums, b.sum(axis=0) - sums)
        for a, b, sums in zip(ours, theirs, moved, strict=True)
    ]


def intervals(
    measures: Mapping[str, Statistic], segments: Statistics
) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals of corpus scores, of metrics that have segments."""
    chosen = [name for name in measures if segments[name].shape[0]]
    if not chosen:
        return {}
    sums = bootstrap_sums([segments[name] for name in chosen])
    return {
        name: _ends(measures[name].resampled(totals))
        for name, totals in zip(chosen, sums, strict=True)
    }


def _ends(scores: np.ndarray) -> tuple[float, float]:
    """The ends of scores without the lowest and highest 25 of a thousand, as in sacreBLEU."""
    ordered = np.sort(scores)
    skipped = len(scores) // 40
    return float(ordered[skipped]), float(ordered[len(scores) - skipped - 1])


def compare(
    measures: Mapping[str, Statistic], ours: Statistics, theirs: Statistics
) -> dict[str, PairedTest]:
    """Every metric's score and the baseline's, on the same segments in the same order.

    If the statistics are the same, there is nothing to test: p is 1. (sacreBLEU would give the
    smallest possible p, because no resample differs by more than 0.)
    """
    same = [name for name in measures if not abs(ours[name] - theirs[name]).sum()]
    names = [name for name in measures if name not in same]
    results = {}
    for name in same:
        value = measures[name].score(ours[name].sum(axis=0))
        results[name] = PairedTest(value, value, (0.0, 0.0), 1.0, 1.0, 1.0)
    if not names:
        return results
    our_rows, their_rows = [ours[name] for name in names], [theirs[name] for name in names]
    sums = bootstrap_sums([*our_rows, *their_rows])
    drawn = sums[: len(names)], sums[len(names) :]
    shuffled = randomised_sums(our_rows, their_rows)
    for index, name in enumerate(names):
        measure = measures[name]
        value, baseline = (measure.score(s[name].sum(axis=0)) for s in (ours, theirs))
        gap = abs(value - baseline)
        differences = measure.resampled(drawn[0][index]) - measure.resampled(drawn[1][index])
        sizes = np.abs(differences)
        swapped = np.abs(np.subtract(*(_scores(measure, sums) for sums in shuffled[index])))
        results[name] = PairedTest(
            value,
            baseline,
            _ends(differences),
            _p_value(swapped, gap - TIE * max(1.0, gap)),
            _p_value(sizes - sizes.mean(), gap),
            _p_value(swapped, gap),
        )
    return {name: results[name] for name in measures}


def _scores(measure: Statistic, totals: np.ndarray) -> np.ndarray:
    return np.array([measure.score(total) for total in totals])


def _p_value(samples: np.ndarray, gap: float) -> float:
    """The share of samples beyond the real difference, which counts too (multeval's formula)."""
    return (int((samples > gap).sum()) + 1) / (len(samples) + 1)
