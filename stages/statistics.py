"""Sufficient statistics of corpus scores: what adds up over segments, and the score of a sum.

BLEU, chrF and TER are sacreBLEU's own: its statistics for each segment, its score from their sum,
its signature. So what is printed is what the `sacrebleu` command prints, however the segments were
spread over workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric as SacreMetric

MetricName = Literal["bleu", "chrf", "ter", "exact_match", "token_accuracy", "perplexity"]
RESAMPLES = 1000
SEED = 12345
"""sacreBLEU's own default seed and number of resamples."""


class Statistic(Protocol):
    """A corpus score that is a function of a sum over segments."""

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """(segments, statistics): numbers that add up."""

    def score(self, total: np.ndarray) -> float:
        """The corpus score of summed statistics."""

    def signature(self) -> str:
        """How it was computed, so that it can be computed again."""


class SacreStatistic:
    """One of sacreBLEU's metrics."""

    def __init__(self, metric: SacreMetric) -> None:
        self.metric = metric
        # The signature names the number of references, which sacreBLEU sets when it caches them.
        metric._cache_references([["a"]])
        metric._ref_cache = None

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        hypotheses, references = list(table["hypothesis"]), list(table["reference"])
        if not hypotheses:
            return np.zeros((0, 1))
        statistics = self.metric._extract_corpus_statistics(hypotheses, [references])
        return np.array(statistics, dtype=np.float64)

    def score(self, total: np.ndarray) -> float:
        values = total.tolist()
        if not isinstance(self.metric, TER):
            values = [int(value) for value in values]
        return float(self.metric._compute_score_from_stats(values).score)

    def signature(self) -> str:
        return str(self.metric.get_signature())


@dataclass(frozen=True)
class RatioStatistic:
    """A share of a count, or another function of two sums."""

    name: str
    definition: str
    pairs: Callable[[Mapping[str, Sequence[Any]]], Sequence[tuple[float, float]]]
    value: Callable[[float, float], float]

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        return np.array(self.pairs(table), dtype=np.float64).reshape(-1, 2)

    def score(self, total: np.ndarray) -> float:
        return self.value(float(total[0]), float(total[1]))

    def signature(self) -> str:
        return f"{self.name}|{self.definition}"


def share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


EXACT_MATCH = RatioStatistic(
    "exact_match",
    "share of segments whose hypothesis equals the reference",
    lambda table: [
        (float(hypothesis == reference), 1.0)
        for hypothesis, reference in zip(table["hypothesis"], table["reference"], strict=True)
    ],
    share,
)
TOKEN_ACCURACY = RatioStatistic(
    "token_accuracy",
    "share of reference subwords, EOS counted, that were the first choice given those before",
    lambda table: list(zip(table["reference_correct"], table["reference_tokens"], strict=True)),
    share,
)
PERPLEXITY = RatioStatistic(
    "perplexity",
    "exp of the mean negative log-probability of a reference subword, EOS counted",
    lambda table: list(
        zip(table["reference_log_probability"], table["reference_tokens"], strict=True)
    ),
    lambda log_probability, tokens: math.exp(-share(log_probability, tokens)),
)


@cache
def statistic(metric: MetricName, tokenizer: str) -> Statistic:
    """A metric by name, with sacreBLEU's defaults; BLEU with the tokenizer given."""
    if metric == "bleu":
        return SacreStatistic(BLEU(tokenize=tokenizer))
    if metric == "chrf":
        return SacreStatistic(CHRF())
    if metric == "ter":
        return SacreStatistic(TER())
    ratios: dict[str, Statistic] = {
        "exact_match": EXACT_MATCH,
        "token_accuracy": TOKEN_ACCURACY,
        "perplexity": PERPLEXITY,
    }
    return ratios[metric]


def interval(statistic: Statistic, segments: np.ndarray) -> tuple[float, float] | None:
    """The 95% bootstrap interval of a corpus score (Koehn, 2004), None for no segments.

    The resamples and the percentiles are those of sacreBLEU's `--confidence`: same generator,
    seed and number, so that the ends are the same.
    """
    count = len(segments)
    if count == 0:
        return None
    random = np.random.default_rng(SEED)
    draws = (random.choice(count, size=count, replace=True) for _ in range(RESAMPLES))
    scores = sorted(statistic.score(segments[draw].sum(axis=0)) for draw in draws)
    skipped = RESAMPLES // 40
    return scores[skipped], scores[RESAMPLES - skipped - 1]
