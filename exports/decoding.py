"""The decoding loop, written once over a step protocol.

A `Stepper` is anything that can start from a source and take one decoding step at a time: a
PyTorch model (`exports.torch_stepper`) and an ONNX Runtime session (`exports.session`) both are.
The loop knows neither; it deals in NumPy arrays of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from model.batching import sorted_batches
from model.vocabulary import BOS, EOS

Source = Mapping[str, np.ndarray]
"""A batch of sources: modality to an array (batch, ...)."""


class Stepper(Protocol):
    """One decoding step at a time. The state belongs to the stepper; the loop only passes it on."""

    def start(self, source: Source) -> Any:
        """The state before the first step."""

    def step(self, state: Any, tokens: np.ndarray, position: int) -> tuple[np.ndarray, Any]:
        """Logits (batch, vocabulary) after the tokens (batch,), and the state that follows."""

    def select(self, state: Any, rows: np.ndarray) -> Any:
        """The state of the given rows alone, in the given order."""


@dataclass(frozen=True)
class Hypothesis:
    """What was decoded for one row: `tokens` without BOS and EOS, and their log-probability.

    `score` sums natural-log probabilities of the tokens and of EOS where it was reached.
    """

    tokens: list[int]
    score: float
    finished: bool


def log_softmax_at(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Natural-log probabilities (batch,) of `tokens` under `logits` (batch, vocabulary)."""
    highest = logits.max(axis=1, keepdims=True)
    shifted = logits - highest
    chosen = shifted[np.arange(len(tokens)), tokens]
    np.exp(shifted, out=shifted)
    return chosen - np.log(shifted.sum(axis=1))


def greedy(stepper: Stepper, source: Source, limits: np.ndarray) -> list[Hypothesis]:
    """The most probable token at every step, until EOS or the row's limit of tokens.

    Rows that have finished leave the batch once they are a quarter of it, so that the rest runs
    faster; which rows run together does not change what is decoded.

    Args:
        source: arrays (batch, ...), padded.
        limits: (batch,) the most tokens each row may have, EOS not counted.
    """
    batch = len(limits)
    decoded = np.zeros((batch, int(limits.max(initial=0))), dtype=np.int64)
    lengths = np.zeros(batch, dtype=np.int64)
    scores = np.zeros(batch)
    finished = np.zeros(batch, dtype=bool)
    rows = np.arange(batch)
    running = limits > 0
    last = np.full(batch, BOS, dtype=np.int64)
    state = stepper.start(source)
    position = 0
    while running.any():
        if running.sum() <= 0.75 * len(rows):
            kept = np.flatnonzero(running)
            state = stepper.select(state, kept)
            rows, running, last = rows[kept], running[kept], last[kept]
        logits, state = stepper.step(state, last, position)
        position += 1
        last = logits.argmax(axis=1)
        gained = log_softmax_at(logits, last)
        scores[rows[running]] += gained[running]
        ended = running & (last == EOS)
        finished[rows[ended]] = True
        running = running & ~ended
        decoded[rows[running], position - 1] = last[running]
        lengths[rows[running]] = position
        running &= position < limits[rows]
    return [
        Hypothesis(row[:length].tolist(), float(score), bool(done))
        for row, length, score, done in zip(decoded, lengths, scores, finished, strict=True)
    ]


@dataclass(frozen=True)
class Forced:
    """Given targets under a model: log-probability of each token, EOS counted, and how many of
    them were the model's own first choice."""

    score: float
    tokens: int
    correct: int


def force(stepper: Stepper, source: Source, targets: Sequence[Sequence[int]]) -> list[Forced]:
    """Scores given targets step by step through the same steps that decode.

    Args:
        targets: token ids, EOS last.
    """
    batch = len(targets)
    lengths = np.array([len(target) for target in targets])
    scores, correct = np.zeros(batch), np.zeros(batch, dtype=np.int64)
    last = np.full(batch, BOS, dtype=np.int64)
    state = stepper.start(source)
    for position in range(int(lengths.max(initial=0))):
        logits, state = stepper.step(state, last, position)
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


def length_limits(lengths: np.ndarray, longest: int) -> np.ndarray:
    """The most tokens to decode for sources of these lengths: twice as many and ten, as fairseq's
    `max_len_a` and `max_len_b` are commonly set, and never more than the model takes."""
    return np.minimum(lengths * 2 + 10, longest - 1)


def decode_all(
    stepper: Stepper,
    lengths: np.ndarray,
    collate: Callable[[np.ndarray], Source],
    limits: np.ndarray,
    batch_tokens: int,
    on_rows: Callable[[int], None] = lambda _: None,
    threads: int = 1,
) -> list[Hypothesis]:
    """Decodes any number of rows greedily, sorted by length and in batches of a token budget.

    Args:
        lengths: source tokens of each row.
        collate: the padded source of the given row numbers.
        limits: the most tokens each row may have.
        batch_tokens: padded source tokens in a batch.
        on_rows: told how many rows each batch finished.
        threads: batches decoded at the same time. Whole batches side by side keep cores busier
            than the small matrices of one step, split, would.

    Returns:
        Hypotheses in the order of `lengths`.
    """
    results: list[Hypothesis | None] = [None] * len(lengths)
    batches = sorted_batches(lengths, batch_tokens)

    def decode(rows: np.ndarray) -> list[Hypothesis]:
        return greedy(stepper, collate(rows), limits[rows])

    with ThreadPoolExecutor(threads) as pool:
        for rows, decoded in zip(batches, pool.map(decode, batches), strict=True):
            for row, hypothesis in zip(rows, decoded, strict=True):
                results[row] = hypothesis
            on_rows(len(rows))
    return [hypothesis for hypothesis in results if hypothesis is not None]
