"""How diverse several outputs for one source are, and what it costs in quality.

Distinct-n (Li et al., 2016, section 5.2): different n-grams divided by all n-grams, over the
outputs of one source, the mean over sources. Self-BLEU (Zhu et al., 2018, section 3.1): BLEU of
each output against the others of its source; lower is more diverse. Coverage: sentence BLEU of each
reference's nearest output, the mean over the references of all sources. Words are those of BLEU's
tokenizer. Intervals and tests resample sources, as `stages.measures.significance` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from sacrebleu.metrics import BLEU

from pipelines.contracts.scores import Gain, Variety
from stages.measures.significance import compare, intervals
from stages.measures.statistics import (
    Kept,
    RatioStatistic,
    Statistic,
    has_four_words,
    share,
    statistic,
)
from stages.score.segments import TaskScoring

SETTING = ["task", "kind", "temperature", "weight"]
"""Columns that say how outputs were made."""
MEAN = RatioStatistic("mean", "sources", lambda _: (), share)


class MeanOverSamples(Kept):
    """The mean of the corpus scores of the first output of every source, the second, and so on."""

    def __init__(self, corpus: Statistic, samples: int) -> None:
        self.corpus, self.samples = corpus, samples

    def segments(self, table: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """(sources, samples × statistics); the table's rows are sorted by source and sample."""
        each = self.corpus.segments(table)
        return each.reshape(-1, self.samples * each.shape[1])

    def score(self, total: np.ndarray) -> float:
        return float(np.mean([self.corpus.score(part) for part in self._parts(total)]))

    def resampled(self, totals: np.ndarray) -> np.ndarray:
        parts = [self.corpus.resampled(part) for part in self._parts(totals)]
        return np.asarray(np.mean(parts, axis=0))

    def signature(self, references: int = 1) -> str:
        return self.corpus.signature(references)

    def _parts(self, totals: np.ndarray) -> list[np.ndarray]:
        return np.split(totals, self.samples, axis=-1)


class Measured:
    """The statistics of the outputs of one setting, source by source."""

    def __init__(self, part: pl.DataFrame, scoring: TaskScoring) -> None:
        """
        Args:
            part: `id`, `sample`, `hypothesis`, `reference` and more references; as many samples of
                every source.
        """
        part = part.sort("id", "sample", maintain_order=True)
        self.samples = part["sample"].n_unique()
        further = [name for name in scoring.references if name in part.columns]
        corpus = statistic("bleu", scoring.tokenizer, references=tuple(further))
        table = part.to_dict(as_series=False)
        mean = MeanOverSamples(corpus, self.samples)
        self.measures: dict[str, Statistic] = {"bleu": mean}
        self.statistics = {"bleu": mean.segments(table)}
        self.sources = len(self.statistics["bleu"])
        self.four_words = has_four_words(corpus.segments(table))
        self.distinct: dict[str, float | None] = {}
        if self.samples > 1:
            self._several(table, ["reference", *further], corpus, scoring.tokenizer)
        if not self.four_words:
            for name in ("bleu", "best_bleu"):
                self.measures.pop(name, None)

    def _several(
        self,
        table: Mapping[str, Sequence[Any]],
        references: Sequence[str],
        corpus: Statistic,
        tokenizer: str,
    ) -> None:
        sentence = BLEU(tokenize=tokenizer, effective_order=True)
        unigrams: list[float | None] = []
        bigrams: list[float | None] = []
        best, similar, covered = [], [], []
        for first in range(0, len(table["hypothesis"]), self.samples):
            rows = range(first, first + self.samples)
            outputs = [table["hypothesis"][row] for row in rows]
            wanted = [table[name][first] for name in references if table[name][first]]
            words = [sentence.tokenizer(output).split() for output in outputs]
            unigrams.append(distinct(words, 1))
            bigrams.append(distinct(words, 2))
            similar.append((self_bleu(outputs, sentence), 1.0))
            scores = [sentence.sentence_score(output, wanted).score for output in outputs]
            best.append(rows[int(np.argmax(scores))])
            nearest = [
                max(sentence.sentence_score(output, [each]).score for output in outputs)
                for each in wanted
            ]
            covered.append((sum(nearest), float(len(nearest))))
        chosen = {name: [table[name][row] for row in best] for name in ("hypothesis", *references)}
        self.measures |= {"best_bleu": corpus, "self_bleu": MEAN, "coverage": MEAN}
        self.statistics |= {
            "best_bleu": corpus.segments(chosen),
            "self_bleu": np.array(similar),
            "coverage": np.array(covered),
        }
        self.distinct = {"distinct_1": _mean(unigrams), "distinct_2": _mean(bigrams)}

    def values(self) -> dict[str, float]:
        return {
            name: measure.score(self.statistics[name].sum(axis=0))
            for name, measure in self.measures.items()
        }


def distinct(outputs: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams divided by all n-grams; None if there are none."""
    grams = [
        tuple(words[start : start + n]) for words in outputs for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(outputs: Sequence[str], metric: BLEU) -> float:
    """The mean BLEU (0 to 100) of each output with the others as its references."""
    scores = [
        metric.sentence_score(output, [*outputs[:number], *outputs[number + 1 :]]).score
        for number, output in enumerate(outputs)
    ]
    return float(np.mean(scores))


def variety(table: pl.DataFrame, tasks: Mapping[str, TaskScoring]) -> list[Variety]:
    """Quality and diversity for each task and way of making several outputs. A selection also
    stands beside that token sampling whose self-BLEU is nearest to its own.

    Args:
        table: `task`, `kind`, `temperature`, `weight`, `drawn`, `id`, `sample`, `hypothesis`,
            `reference`, and the tasks' further references.
    """
    made: list[tuple[Variety, Measured]] = []
    for (task, kind, temperature, weight), part in table.group_by(SETTING, maintain_order=True):
        found = Measured(part, tasks[str(task)])
        entry = Variety(
            task=str(task),
            kind=str(kind),
            temperature=float(str(temperature)),
            weight=None if weight is None else float(str(weight)),
            rows=found.sources,
            samples=found.samples,
            drawn=int(part["drawn"][0]),
            **found.values(),
            **found.distinct,
            ci95=intervals(found.measures, found.statistics),
        )
        made.append((entry, found))
    sampled = [each for each in made if each[0].kind == "sampling"]
    return [_beside(entry, found, sampled) for entry, found in made]


def _beside(
    entry: Variety, found: Measured, sampled: Sequence[tuple[Variety, Measured]]
) -> Variety:
    """The entry; a selection with its gains over the token sampling that varies most nearly as
    much."""

    def distance(other: tuple[Variety, Measured]) -> float:
        return abs((other[0].self_bleu or 0.0) - (entry.self_bleu or 0.0))

    rivals = [each for each in sampled if each[0].task == entry.task]
    if entry.kind != "selection" or not rivals:
        return entry
    nearest, theirs = min(rivals, key=distance)
    names = [name for name in found.measures if name != "self_bleu"]
    tests = compare(
        {name: found.measures[name] for name in names}, found.statistics, theirs.statistics
    )
    gains = tuple(
        Gain(metric=name, difference=test.value - test.baseline, ci95=test.ci95, p=test.p)
        for name, test in tests.items()
    )
    return entry.model_copy(update={"beside": nearest.temperature, "gains": gains})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
