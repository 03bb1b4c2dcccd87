"""Scores given targets through the same steps as decoding, and ranks labels by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exports.decoding.hypotheses import log_softmax_at
from exports.decoding.stepper import Source, Stepper
from model.vocabulary import BOS, EOS


@dataclass(frozen=True)
class Forced:
    """A given target under a model: its log-probability, its number of tokens (EOS counted), and
    how many of them were the model's own first choice."""

    score: float
    tokens: int
    correct: int


def force(
    stepper: Stepper, source: Source, targets: Sequence[Sequence[int]], of_row: int = 1
) -> list[Forced]:
    """Scores given targets step by step, through the same steps as decoding.

    Args:
        targets: token ids, EOS last.
        of_row: number of targets of each source row, one after the other.
    """
    shape = len(targets) // of_row, of_row
    lengths = np.array([len(target) for target in targets])
    scores, correct = np.zeros(len(targets)), np.zeros(len(targets), dtype=np.int64)
    last = np.full(len(targets), BOS, dtype=np.int64)
    state = stepper.start(source)
    if of_row > 1:
        state = stepper.reorder(state, np.zeros(shape, dtype=np.int64))
    for position in range(int(lengths.max(initial=0))):
        step_logits, state = stepper.step(state, last.reshape(shape), position)
        logits = step_logits.reshape(len(targets), -1)
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
    """Probabilities (rows, labels) of whole targets, when no other output is allowed.

    Every label is scored through the same steps as decoding, and the probabilities are normalised
    over the labels. So the most probable label is the result of exact constrained decoding.

    Args:
        labels: token ids of each, EOS last.
    """
    forced = force(stepper, source, list(labels) * rows, of_row=len(labels))
    scores = np.array([result.score for result in forced]).reshape(rows, len(labels))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
