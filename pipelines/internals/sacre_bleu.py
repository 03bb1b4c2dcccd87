"""sacreBLEU's statistics of segments, and its score of their sum, which its API keeps together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sacrebleu.metrics.base import Metric, Score

from pipelines.internals.versions import require

require(["sacrebleu"], "2.6.0")


def segment_statistics(
    metric: Metric, hypotheses: Sequence[str], references: Sequence[Sequence[str | None]]
) -> list[list[float]]:
    """Statistics of every segment, which add up; `references` are whole sets, one after another."""
    statistics: list[list[float]] = metric._extract_corpus_statistics(hypotheses, references)
    return statistics


def scorer(metric: Metric) -> Callable[[Any], Score]:
    """The function from a sum of statistics to the score."""
    compute: Callable[[Any], Score] = metric._compute_score_from_stats
    return compute


def tokenized(metric: Metric, text: str) -> str:
    """A segment as the metric counts its words: separated by spaces."""
    return str(metric._preprocess_segment(text))
