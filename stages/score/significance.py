"""How sure scores are, and whether two systems differ: resampled sufficient statistics.

The tests are sacreBLEU's, with its numbers: the same generator, seed, resamples and rounding, so
that intervals and p-values equal those of `sacrebleu --confidence`, `--paired-bs` and
`--paired-ar`. It copies the statistics of every resample; here a resample is how often each segment
was drawn, and the sums of many resamples, of all metrics together, are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.score.statistics import Statistic

RESAMPLES, TRIALS = 1000, 10_000
"""sacreBLEU's own defaults of the bootstrap and of approximate randomisation."""
SEED = 12345
"""sacreBLEU's own default seed."""
DRAWS, COINS = 1 << 17, 1 << 22
"""Drawn segments, and tossed coins, that are in memory at a time: measured to be fast."""
TIE = 1e-9
"""Differences this close to each other, relative to their size, are the same."""
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
    systems do (Noreen, 1989; Riezler and Maxwell, 2005). What verdicts and gates go by."""
    p_bootstrap: float
    """Paired bootstrap (Koehn, 2004), two-sided, as sacreBLEU's `--paired-bs`."""
    p_randomisation: float
    """As sacreBLEU's `--paired-ar`, which counts only shuffles that differ by more. Where few
    segments changed none can, and it is the least there is: with one of a thousand, 0.0001."""


def blocks(segments: int, resamples: int, together: int, step: int = 1) -> Iterator[int]:
    """Sizes of the blocks in which resamples are drawn: multiples of `step`, but for the last."""
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
    found: list[list[np.ndarray]] = [[] for _ in columns]
    for rows in blocks(count, resamples, DRAWS):
        # One after the other, blocks draw what one draw of all would.
        drawn = random.choice(count, size=(rows, count), replace=True)
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count)
        times = times.reshape(rows, count).astype(np.float64)
        for sums, one in zip(found, columns, strict=True):
            sums.append(times @ one)
    return [np.concatenate(sums) for sums in found]


def randomised_sums(
    ours: Sequence[Any], theirs: Sequence[Any], trials: int = TRIALS, seed: int = SEED
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums (trials, statistics) of two systems after each segment was swapped or not by a coin."""
    count = ours[0].shape[0]
    random = np.random.default_rng(seed)
    changes = [b - a for a, b in zip(ours, theirs, strict=True)]
    found: list[list[np.ndarray]] = [[] for _ in ours]
    # NumPy draws bits from words of 32, of which a block must leave none over.
    for rows in blocks(count, trials, COINS, 32):
        swapped = random.integers(2, size=(rows, count), dtype=bool).astype(np.float64)
        for sums, change in zip(found, changes, strict=True):
            sums.append(swapped @ change)
    moved = [np.concatenate(sums) for sums in found]
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
        name: _ends(measures[name].resampled(found))
        for name, found in zip(chosen, sums, strict=True)
    }


def _ends(scores: np.ndarray) -> tuple[float, float]:
    """What remains of scores without the 25 of a thousand at either end, as sacreBLEU has it."""
    ordered = np.sort(scores)
    skipped = len(scores) // 40
    return float(ordered[skipped]), float(ordered[len(scores) - skipped - 1])


def compare(
    measures: Mapping[str, Statistic], ours: Statistics, theirs: Statistics
) -> dict[str, PairedTest]:
    """Every metric's score beside the baseline's, on the same segments in the same order.

    Where the statistics are the same there is nothing to test: p is 1. (sacreBLEU would give the
    least p there is, for no resample differs by more than nothing.)
    """
    same = [name for name in measures if not abs(ours[name] - theirs[name]).sum()]
    names = [name for name in measures if name not in same]
    found = {}
    for name in same:
        value = measures[name].score(ours[name].sum(axis=0))
        found[name] = PairedTest(value, value, (0.0, 0.0), 1.0, 1.0, 1.0)
    if not names:
        return found
    one, other = [ours[name] for name in names], [theirs[name] for name in names]
    sums = bootstrap_sums([*one, *other])
    drawn = sums[: len(names)], sums[len(names) :]
    shuffled = randomised_sums(one, other)
    for index, name in enumerate(names):
        measure = measures[name]
        value, baseline = (measure.score(s[name].sum(axis=0)) for s in (ours, theirs))
        gap = abs(value - baseline)
        differences = measure.resampled(drawn[0][index]) - measure.resampled(drawn[1][index])
        sizes = np.abs(differences)
        swapped = np.abs(np.subtract(*(_scores(measure, sums) for sums in shuffled[index])))
        found[name] = PairedTest(
            value,
            baseline,
            _ends(differences),
            _p_value(swapped, gap - TIE * max(1.0, gap)),
            _p_value(sizes - sizes.mean(), gap),
            _p_value(swapped, gap),
        )
    return {name: found[name] for name in measures}


def _scores(measure: Statistic, totals: np.ndarray) -> np.ndarray:
    return np.array([measure.score(total) for total in totals])


def _p_value(samples: np.ndarray, gap: float) -> float:
    """The share of samples beyond the real difference, itself counted (multeval's formula)."""
    return (int((samples > gap).sum()) + 1) / (len(samples) + 1)
