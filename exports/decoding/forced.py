"""Given targets scored through the same steps that decode; labels ranked by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exports.decoding.hypotheses import log_softmax_at
from exports.decoding.stepper import Source, Stepper
from model.vocabulary import BOS, EOS


@dataclass(frozen=True)
class Forced:
    """Given targets under a model: log-probability of each token, EOS counted, and how many of
    them were the model's own first choice."""

    score: float
    tokens: int
    correct: int


def force(
    stepper: Stepper, source: Source, targets: Sequence[Sequence[int]], of_row: int = 1
) -> list[Forced]:
    """Scores given targets step by step through the same steps that decode.

    Args:
        targets: token ids, EOS last.
        of_row: targets of each row of the source, one after the other.
    """
    shape = len(targets) // of_row, of_row
    lengths = np.array([len(target) for target in targets])
    scores, correct = np.zeros(len(targets)), np.zeros(len(targets), dtype=np.int64)
    last = np.full(len(targets), BOS, dtype=np.int64)
    state = stepper.start(source)
    if of_row > 1:
        state = stepper.reorder(state, np.zeros(shape, dtype=np.int64))
    for position in range(int(lengths.max(initial=0))):
        found, state = stepper.step(state, last.reshape(shape), position)
        logits = found.reshape(len(targets), -1)
        running = position < lengths
        last = np.array(
            [target[position] if position < len(target) else EOS for target in targets],
            dtype=np.int64,
        )
        scores[running] += log_softmax_at(logits, last)[running]
        correct[running] += (logits.argmax(axis=1) == last)[running]
    return [
        Forced(float(score), int(length), int(right))
        for score, length, right in zip(scores, lengths, correct, strict=True)
    ]


def rank_labels(
    stepper: Stepper, source: Source, labels: Sequence[Sequence[int]], rows: int
) -> np.ndarray:
    """Probabilities (rows, labels) of whole targets, when nothing else may be said.

    Every label is scored through the same steps that decode; their probabilities are normalised
    over the labels. The first is so what exact constrained decoding would give.

    Args:
        labels: token ids of each, EOS last.
    """
    forced = force(stepper, source, list(labels) * rows, of_row=len(labels))
    scores = np.array([one.score for one in forced]).reshape(rows, len(labels))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
