"""How diverse several outputs for one source are, and what it costs in quality.

Distinct-n (Li et al., 2016, section 5.2): different n-grams divided by all n-grams, over the
outputs of one source, the mean over sources. Self-BLEU (Zhu et al., 2018, section 3.1): BLEU of
each output against the others of its source; lower is more diverse. Words are those of BLEU's
tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from sacrebleu.metrics import BLEU

from pipelines.contracts.scores import Variety
from stages.score.statistics import has_four_words, statistic


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


def variety(table: pl.DataFrame, tokenizers: Mapping[str, str]) -> list[Variety]:
    """Quality and diversity for each task, kind of sampling and temperature.

    Args:
        table: `task`, `kind`, `temperature`, `id`, `sample`, `hypothesis`, `reference`.
    """
    entries = []
    groups = table.group_by("task", "kind", "temperature", maintain_order=True)
    for (task, kind, temperature), part in groups:
        tokenizer = tokenizers[str(task)]
        corpus = statistic("bleu", tokenizer)
        segments = corpus.segments(part.to_dict(as_series=False))
        defined = has_four_words(segments)
        numbered = part.with_row_index("row")
        by_sample = [
            corpus.score(segments[drawn["row"].to_numpy()].sum(axis=0))
            for _, drawn in numbered.group_by("sample", maintain_order=True)
        ]
        several: dict[str, float | None] = {}
        if len(by_sample) > 1:
            several, best = _several(numbered, BLEU(tokenize=tokenizer, effective_order=True))
            best_bleu = corpus.score(segments[best].sum(axis=0)) if defined else None
            several = {"best_bleu": best_bleu, **several}
        entries.append(
            Variety(
                task=str(task),
                kind=str(kind),
                temperature=float(str(temperature)),
                rows=part["id"].n_unique(),
                samples=len(by_sample),
                bleu=float(np.mean(by_sample)) if defined else None,
                **several,
            )
        )
    return entries


def _several(part: pl.DataFrame, sentence: BLEU) -> tuple[dict[str, float | None], list[int]]:
    """The diversity of each source's outputs, and the rows of the best ones."""
    unigrams: list[float | None] = []
    bigrams: list[float | None] = []
    similarities, best = [], []
    for _, drawn in part.group_by("id", maintain_order=True):
        outputs, reference = drawn["hypothesis"].to_list(), str(drawn["reference"][0])
        words = [sentence.tokenizer(output).split() for output in outputs]
        unigrams.append(distinct(words, 1))
        bigrams.append(distinct(words, 2))
        similarities.append(self_bleu(outputs, sentence))
        scores = [sentence.sentence_score(output, [reference]).score for output in outputs]
        best.append(int(drawn["row"][int(np.argmax(scores))]))
    return {
        "distinct_1": _mean(unigrams),
        "distinct_2": _mean(bigrams),
        "self_bleu": float(np.mean(similarities)),
    }, best


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
