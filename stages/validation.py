"""Scores of a model on held-out rows, in training and after export, from any `Stepper`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sacrebleu.metrics import BLEU

from exports.decoding.batches import in_batches
from exports.decoding.greedy import greedy
from exports.decoding.stepper import Stepper
from stages.measures.metrics import bleu_tokenizer

if TYPE_CHECKING:
    from model.modalities.target import TargetCodec
    from pipelines.contracts.tasks import Task
    from stages.features.feature_set import Rows

BATCH_TOKENS = 4096
"""Padded source tokens in a batch of greedy decoding."""


class Validation:
    """Scores of each task by greedy decoding: BLEU as the score stage computes it, or for tasks
    with labels the percentage that is correct."""

    def __init__(self, rows: Rows, tasks: Mapping[str, Task], target: TargetCodec) -> None:
        self.source, self.tasks, self.target = rows.source, tasks, target
        self.references = rows.table["reference"].to_list()
        self.of_task = np.array(rows.table["task"].to_list())

    def scores(self, stepper: Stepper, max_length: int) -> dict[str, float]:
        """The scores, named `bleu.TASK` and `accuracy.TASK`."""
        source = self.source
        limits = self.target.limits(source.lengths.sum(axis=1), max_length)

        def decode(chosen: np.ndarray) -> list[list[int]]:
            hypotheses = greedy(stepper, source.collate(chosen), limits[chosen])
            return [hypothesis.tokens for hypothesis in hypotheses]

        texts = self.target.decode(in_batches(source.lengths, BATCH_TOKENS, decode))
        scores: dict[str, float] = {}
        for task in sorted(set(self.of_task.tolist())):
            chosen = np.flatnonzero(self.of_task == task)
            outputs = [texts[row] for row in chosen]
            wanted = [self.references[row] for row in chosen]
            if self.tasks[task].labels:
                right = sum(a == b for a, b in zip(outputs, wanted, strict=True))
                scores[f"accuracy.{task}"] = 100 * right / len(chosen)
            else:
                language = self.tasks[task].languages.get("target")
                scores[f"bleu.{task}"] = bleu_of(outputs, wanted, language)
        return scores


def bleu_of(outputs: Sequence[str], references: Sequence[str], language: str | None) -> float:
    """Corpus BLEU. Single words have no longer n-grams; effective order counts only those they
    have."""
    metric = BLEU(tokenize=bleu_tokenizer(language), effective_order=True)
    return float(metric.corpus_score(outputs, [references]).score)
