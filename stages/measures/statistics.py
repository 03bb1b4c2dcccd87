"""Sufficient statistics of corpus scores: what adds up over segments, and the score of a sum.

BLEU, chrF and TER are sacreBLEU's own: its statistics for each segment, its score from their sum,
its signature. So the printed scores are those of the `sacrebleu` command, however the segments were
spread over workers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric as SacreMetric

from pipelines.contracts.predictions import WISHED
from pipelines.contracts.scores import Bin, LabelScores
from pipelines.internals.sacre_bleu import scorer, segment_statistics
from stages.measures.metrics import MetricName

if TYPE_CHECKING:
    from stages.judges import WishJudge

BINS = 10
"""Bins of confidence, equally wide, for calibration."""
GRID = 2.0**-24
"""Statistics are multiples of it, so that sums up to 2**29 are exact and the same in any order, on
any workers."""


class Statistic(Protocol):
    """A corpus score that is a function of a sum over segments."""

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """(segments, statistics): numbers that add up, whole or `on_grid`."""

    def packed(self, segments: np.ndarray) -> np.ndarray:
        """The same statistics in few numbers (segments, few), to keep for each segment."""

    def unpacked(self, packed: np.ndarray) -> Any:
        """(segments, statistics) from what `packed` returned; sparse if most of them are 0."""

    def score(self, total: np.ndarray) -> float:
        """The corpus score of summed statistics."""

    def resampled(self, totals: np.ndarray) -> np.ndarray:
        """The scores (resamples,) of many sums (resamples, statistics) of drawn segments."""

    def signature(self, references: int = 1) -> str:
        """How it was computed, so that it can be computed again.

        Args:
            references: number for each segment; -1 if some have more than others.
        """


def on_grid(values: np.ndarray) -> np.ndarray:
    """The nearest multiples of `GRID`, at most 3e-8 away."""
    return np.asarray(np.round(values / GRID) * GRID)


class Kept(ABC):
    """What most statistics have in common: few numbers, which are kept for each segment as they
    are, and resamples that are scored like any sum."""

    @abstractmethod
    def score(self, total: np.ndarray) -> float:
        """See `Statistic`."""

    def resampled(self, totals: np.ndarray) -> np.ndarray:
        return np.array([self.score(total) for total in totals])

    def packed(self, segments: np.ndarray) -> np.ndarray:
        return segments

    def unpacked(self, packed: np.ndarray) -> Any:
        return packed


class SacreStatistic(Kept):
    """One of sacreBLEU's metrics."""

    def __init__(self, metric: SacreMetric, references: Sequence[str] = ()) -> None:
        """
        Args:
            references: columns of more references; they can be empty in some rows.
        """
        self.metric, self.further = metric, references

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        hypotheses = list(table["hypothesis"])
        if not hypotheses:
            return np.zeros((0, 1))
        references = [list(table[name]) for name in ("reference", *self.further)]
        statistics = segment_statistics(self.metric, hypotheses, references)
        # The length that TER uses is the mean of the references' lengths.
        return on_grid(np.array(statistics, dtype=np.float64))

    def score(self, total: np.ndarray) -> float:
        values = total.tolist()
        if not isinstance(self.metric, TER):
            values = [int(value) for value in values]
        return float(scorer(self.metric)(values).score)

    def resampled(self, totals: np.ndarray) -> np.ndarray:
        """With sacreBLEU's rounding: it sums resamples in float32, and computes with those sums."""
        compute = scorer(self.metric)
        return np.array([compute(total).score for total in totals.astype(np.float32)])

    def signature(self, references: int = 1) -> str:
        self.metric.num_refs = references
        return str(self.metric.get_signature())


@dataclass(frozen=True)
class RatioStatistic(Kept):
    """A share of a count, or another function of two sums."""

    name: str
    definition: str
    pairs: Callable[[Mapping[str, Sequence[Any]]], Sequence[tuple[float, float]]]
    value: Callable[[float, float], float]

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        return on_grid(np.array(self.pairs(table), dtype=np.float64).reshape(-1, 2))

    def score(self, total: np.ndarray) -> float:
        return self.value(float(total[0]), float(total[1]))

    def signature(self, references: int = 1) -> str:
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


def _edits(table: Mapping[str, Sequence[Any]], unit: Literal["words", "characters"]) -> Any:
    """Edits and length of every reference, as jiwer counts them."""
    import jiwer

    align = jiwer.process_words if unit == "words" else jiwer.process_characters
    for hypothesis, reference in zip(table["hypothesis"], table["reference"], strict=True):
        alignment = align([reference], [hypothesis])
        edits = alignment.substitutions + alignment.deletions + alignment.insertions
        yield float(edits), float(alignment.hits + alignment.substitutions + alignment.deletions)


WER = RatioStatistic(
    "wer",
    f"jiwer {version('jiwer')}, words between spaces, edits to reference words, case and "
    "punctuation kept",
    lambda table: list(_edits(table, "words")),
    share,
)
CER = RatioStatistic(
    "cer",
    f"jiwer {version('jiwer')}, edits to reference characters, case and punctuation kept",
    lambda table: list(_edits(table, "characters")),
    share,
)
ACCURACY = RatioStatistic(
    "accuracy",
    "share of rows whose most probable label is the reference",
    EXACT_MATCH.pairs,
    share,
)
TOP_ACCURACY = RatioStatistic(
    "top_accuracy",
    "share of rows whose reference is among the labels kept (generate's top:)",
    lambda table: [
        (float(reference in labels), 1.0)
        for labels, reference in zip(table["labels"], table["reference"], strict=True)
    ],
    share,
)


@dataclass(frozen=True)
class WishStatistic(Kept):
    """Rows whose output has all that was wished for, and rows with a wish."""

    judges: Mapping[str, WishJudge]
    asked: Mapping[str, str] = field(default_factory=dict)
    """What was wished for, in words, by wish."""

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        wanted = [table[WISHED + name] for name in self.judges]
        rows = np.zeros((len(table["hypothesis"]), 2))
        for row, (text, *values) in enumerate(zip(table["hypothesis"], *wanted, strict=True)):
            wishes = [
                (judge, value)
                for judge, value in zip(self.judges.values(), values, strict=True)
                if value is not None
            ]
            if wishes:
                rows[row] = all(judge.meets(text, value) for judge, value in wishes), 1
        return rows

    def score(self, total: np.ndarray) -> float:
        return share(float(total[0]), float(total[1]))

    def resampled(self, totals: np.ndarray) -> np.ndarray:
        """Resamples that happen to have no row with a wish say nothing: they get the mean."""
        scores = super().resampled(totals)
        known = ~np.isnan(scores)
        return np.where(known, scores, scores[known].mean() if known.any() else 0.0)

    def signature(self, references: int = 1) -> str:
        judged = []
        for name, judge in sorted(self.judges.items()):
            near = f", within {judge.within}" if judge.within else ""
            judged.append(f"{name} {self.asked.get(name, '')} by {judge}{near}")
        return f"wish|share of outputs that have what was wished for|{'; '.join(judged)}"


@dataclass(frozen=True)
class ConfusionStatistic(Kept):
    """How often each label was predicted for each: counts (labels, labels + 1), flattened, with
    references as rows and hypotheses as columns; the last column is for what is not a label."""

    labels: tuple[str, ...]

    def packed(self, segments: np.ndarray) -> np.ndarray:
        """The index of the statistic that is 1; -1 if none is."""
        return np.where(segments.any(axis=1), segments.argmax(axis=1), -1)[:, None]

    def unpacked(self, packed: np.ndarray) -> Any:
        from scipy.sparse import csr_array

        positions = packed[:, 0].astype(np.int64)
        rows = np.flatnonzero(positions >= 0)
        shape = len(positions), len(self.labels) * (len(self.labels) + 1)
        return csr_array((np.ones(len(rows)), (rows, positions[rows])), shape=shape)

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        count = len(self.labels)
        numbers = {label: number for number, label in enumerate(self.labels)}
        rows = np.zeros((len(table["reference"]), count * (count + 1)))
        pairs = zip(table["reference"], table["hypothesis"], strict=True)
        for row, (reference, hypothesis) in enumerate(pairs):
            if reference in numbers:
                position = numbers[reference] * (count + 1) + numbers.get(hypothesis, count)
                rows[row, position] = 1
        return rows

    def matrix(self, total: np.ndarray) -> np.ndarray:
        return total.reshape(len(self.labels), len(self.labels) + 1).astype(np.int64)

    def by_label(self, total: np.ndarray) -> list[LabelScores]:
        """Precision, recall, F1 and number of each label; 0 for a division by zero, as in
        scikit-learn's `precision_recall_fscore_support(zero_division=0)`."""
        matrix = self.matrix(total)
        entries = []
        for number, label in enumerate(self.labels):
            right = int(matrix[number, number])
            support, taken = int(matrix[number].sum()), int(matrix[:, number].sum())
            precision = right / taken if taken else 0.0
            recall = right / support if support else 0.0
            denominator = precision + recall
            f1 = 2 * precision * recall / denominator if denominator else 0.0
            entries.append(
                LabelScores(label=label, precision=precision, recall=recall, f1=f1, support=support)
            )
        return entries

    def score(self, total: np.ndarray) -> float:
        """The mean F1 of the labels that occur in references or hypotheses, as scikit-learn's
        `f1_score(average="macro")`: a slice can lack some labels."""
        matrix = self.matrix(total)
        occur = matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) > 0
        scores = np.array([row.f1 for row in self.by_label(total)])
        return float(scores[occur].mean())

    def signature(self, references: int = 1) -> str:
        return "macro_f1|mean of F1 over the labels that occur in references or hypotheses"


@dataclass(frozen=True)
class CalibrationStatistic(Kept):
    """Rows, summed confidence and correct rows in each bin of confidence (Guo et al., 2017)."""

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        rows = np.zeros((len(table["reference"]), BINS, 3))
        columns = zip(table["probabilities"], table["hypothesis"], table["reference"], strict=True)
        for row, (probabilities, hypothesis, reference) in enumerate(columns):
            confidence = probabilities[0]
            index = min(BINS - 1, int(confidence * BINS))
            rows[row, index] = 1, confidence, hypothesis == reference
        return on_grid(rows.reshape(-1, BINS * 3))

    def bins(self, total: np.ndarray) -> list[Bin]:
        return [
            Bin(rows=int(rows), confidence=share(confidence, rows), accuracy=share(good, rows))
            for rows, confidence, good in total.reshape(BINS, 3)
            if rows
        ]

    def score(self, total: np.ndarray) -> float:
        rows, confidence, right = total.reshape(BINS, 3).T
        return float(np.abs(confidence - right).sum() / rows.sum())

    def signature(self, references: int = 1) -> str:
        return f"calibration_error|expected calibration error, {BINS} bins of equal width"


@cache
def statistic(
    metric: MetricName,
    tokenizer: str,
    labels: tuple[str, ...] = (),
    references: tuple[str, ...] = (),
) -> Statistic:
    """A metric by name, with sacreBLEU's defaults; BLEU with the tokenizer given.

    Args:
        references: columns of more references, which sacreBLEU's metrics use.
    """
    if metric == "bleu":
        return SacreStatistic(BLEU(tokenize=tokenizer), references)
    if metric == "chrf":
        return SacreStatistic(CHRF(), references)
    if metric == "ter":
        return SacreStatistic(TER(), references)
    if metric == "macro_f1":
        return ConfusionStatistic(labels)
    ratios: dict[str, Statistic] = {
        "wer": WER,
        "cer": CER,
        "exact_match": EXACT_MATCH,
        "token_accuracy": TOKEN_ACCURACY,
        "perplexity": PERPLEXITY,
        "accuracy": ACCURACY,
        "top_accuracy": TOP_ACCURACY,
        "calibration_error": CalibrationStatistic(),
    }
    return ratios[metric]


def has_four_words(segments: np.ndarray) -> bool:
    """Whether any reference has four words, from BLEU's statistics: if none has, BLEU is 0 by
    definition, however good the hypotheses are."""
    return bool((segments[:, 1] >= 4).any())
