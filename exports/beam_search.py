"""Beam search over the step protocol, with what may and may not be said.

Several hypotheses of every source run side by side and share its memory and history. Knows nothing
of what takes the steps; see `exports.decoding` for the protocol and for greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from exports.constraints import Constraints
from exports.decoding import (
    KEPT_ROWS,
    Best,
    Hypothesis,
    Source,
    Stepper,
    log_softmax,
    still_running,
)
from exports.history import continued
from model.vocabulary import BOS, EOS

Stop = Literal["first", "bound"]
LEAST = 1e-30
"""Attention that fp32 rounds to nothing counts as this much."""


@dataclass(frozen=True)
class Beam:
    """How wide the search is, what it prefers and when it stops."""

    size: int = 4
    """Hypotheses of each source that run side by side."""
    length_penalty: float = 1.0
    """Scores are divided by (tokens, EOS counted) to this power: fairseq's `--lenpen`, Hugging
    Face's and CTranslate2's `length_penalty`. 0 leaves the log-probability as it is."""
    best: int = 1
    """Hypotheses returned of each source, at most `size`."""
    stop: Stop = "first"
    """first: with the first `size` that have finished, as fairseq does and Hugging Face with
    `early_stopping=True`. bound: when none that runs can get past the worst of the `best` that have
    finished, however it goes on (Huang et al., 2017, section 3)."""
    coverage: float = 0.0
    """Weight of the coverage penalty (Wu et al., 2016, equation 14), which is added to scores of
    hypotheses that leave positions of the source unread. It takes a stepper that gives
    attention."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.best <= self.size:
            raise ValueError(
                f"beam: size {self.size} must be at least best {self.best}, and that 1"
            )

    def normalized(self, score: np.ndarray | float, length: np.ndarray | int) -> np.ndarray:
        """Log-probabilities by length, EOS counted: what hypotheses are compared by."""
        return np.asarray(score) / np.asarray(length, dtype=np.float64) ** self.length_penalty

    def score_of(self, hypothesis: Hypothesis) -> float:
        """A hypothesis' score by its own length."""
        length = len(hypothesis.tokens) + hypothesis.finished
        score = self.normalized(hypothesis.score, max(1, length))
        return float(score) + self.coverage * hypothesis.coverage

    def ranked(self, found: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The best; of equals the earlier found, and what reached its limit after what finished."""
        return sorted(found, key=lambda h: (not h.finished, -self.score_of(h)))[: self.best]


def beam_search(
    stepper: Stepper,
    source: Source,
    limits: np.ndarray,
    beam: Beam,
    constraints: Constraints | None = None,
) -> list[list[Hypothesis]]:
    """The `beam.best` hypotheses of every source, the best first, all different.

    A step considers the 2 · size best continuations of a source: the size best of those that do not
    end run on, and of the size best of all those that end have finished, as in fairseq. With size 1
    this is greedy decoding. A row's result does not depend on what else is in the batch.

    Args:
        source: arrays (batch, ...), padded.
        limits: (batch,) the most tokens each row may have, EOS not counted.
    """
    rules = constraints or Constraints()
    if beam.coverage and not stepper.attentive:
        raise ValueError("a coverage penalty takes graphs exported with attention: true")
    batch, size = len(limits), beam.size
    found: list[list[Hypothesis]] = [[] for _ in range(batch)]
    for row in np.flatnonzero(limits <= 0):
        found[row].append(Hypothesis([], [], False))
    finished = np.zeros(batch, dtype=np.int64)
    sources, running = np.arange(batch), limits > 0
    state = stepper.start(source)
    # Before the first token there is but one hypothesis of each source.
    last = np.full((batch, 1), BOS, dtype=np.int64)
    scores = np.zeros((batch, 1))
    said = np.zeros((batch, 1, 0), dtype=np.int64)
    earned = np.zeros((batch, 1, 0))
    read = np.zeros((batch, 1, 1))
    position = 0

    def covered(index: Any, rank: Any) -> float:
        return _coverage(read[index, rank]) if beam.coverage else 0.0

    while running.any():
        if running.sum() <= KEPT_ROWS * len(sources):
            kept = still_running(running)
            state = stepper.keep(state, kept)
            sources, running = sources[kept], running[kept]
            last, scores, said, earned = last[kept], scores[kept], said[kept], earned[kept]
            read = read[kept]
        best, state = _continuations(stepper, state, last, position, 2 * size, rules, said, sources)
        if beam.coverage:
            read = read + stepper.attention(state)
        total = (scores[:, :, None] + best.gains).reshape(len(sources), -1)
        order = np.argsort(-total, axis=1, kind="stable")[:, : 2 * size]
        values = np.take_along_axis(total, order, axis=1)
        tokens = np.take_along_axis(best.tokens.reshape(total.shape), order, axis=1)
        gains = np.take_along_axis(best.gains.reshape(total.shape), order, axis=1)
        parents = order // best.tokens.shape[2]
        possible = values > -np.inf
        position += 1
        ends = (tokens == EOS) & possible
        for index, rank in zip(*np.nonzero(ends[:, :size] & running[:, None]), strict=True):
            parent = parents[index, rank]
            sums = [*earned[index, parent].tolist(), float(gains[index, rank])]
            hypothesis = Hypothesis(
                said[index, parent].tolist(), sums, True, covered(index, parent)
            )
            found[sources[index]].append(hypothesis)
        finished[sources] += (ends[:, :size] & running[:, None]).sum(axis=1)
        # Those that do not end first, each kind in the order of its scores.
        order = np.argsort(ends | ~possible, axis=1, kind="stable")[:, :size]
        scores = np.take_along_axis(np.where(ends, -np.inf, values), order, axis=1)
        parents = np.take_along_axis(parents, order, axis=1)
        last = np.take_along_axis(tokens, order, axis=1)
        said = np.concatenate([continued(said, parents), last[:, :, None]], axis=2)
        read = continued(read, parents) if beam.coverage else read
        gains = np.take_along_axis(gains, order, axis=1)
        earned = np.concatenate([continued(earned, parents), gains[:, :, None]], axis=2)
        highest, cut = scores.max(axis=1), limits[sources] <= position
        done = cut | (highest == -np.inf)
        if beam.stop == "first":
            done |= finished[sources] >= size
        else:
            for index in np.flatnonzero(running & ~done & (finished[sources] >= beam.best)):
                row = sources[index]
                done[index] = _bounded(
                    beam, found[row], float(highest[index]), position, int(limits[row])
                )
        for index in np.flatnonzero(running & cut):
            found[sources[index]] += [
                Hypothesis(
                    said[index, rank].tolist(),
                    earned[index, rank].tolist(),
                    False,
                    covered(index, rank),
                )
                for rank in np.flatnonzero(scores[index] > -np.inf)
            ]
        running &= ~done
        if running.any():
            state = stepper.reorder(state, parents)
    return [beam.ranked(one) for one in found]


def _coverage(read: np.ndarray) -> float:
    """Σ log min(attention, 1), of attention (source,) summed over all steps."""
    return float(np.log(np.clip(read, LEAST, 1)).sum())


def _continuations(
    stepper: Stepper,
    state: Any,
    last: np.ndarray,
    position: int,
    count: int,
    rules: Constraints,
    said: np.ndarray,
    sources: np.ndarray,
) -> tuple[Best, Any]:
    """The `count` best tokens after every hypothesis, or all where there are fewer."""
    if not rules.any:
        return stepper.best(state, last, position, count)
    logits, state = stepper.step(state, last, position)
    batch, hypotheses, vocabulary = logits.shape
    gains = log_softmax(logits.reshape(-1, vocabulary)).astype(np.float64)
    rules.forbid(gains, said.reshape(len(gains), -1), np.repeat(sources, hypotheses))
    best = _largest(gains, min(count, vocabulary))
    shape = (batch, hypotheses, -1)
    return Best(best.reshape(shape), np.take_along_axis(gains, best, axis=1).reshape(shape)), state


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places (rows, count) of the largest of each row, the largest first; of equals the first."""
    places = np.argpartition(-values, count - 1, axis=1)[:, :count]
    places.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _bounded(
    beam: Beam, finished: Sequence[Hypothesis], highest: float, position: int, limit: int
) -> bool:
    """Whether no hypothesis that runs can get past the worst that is kept."""
    worst = sorted(map(beam.score_of, finished), reverse=True)[beam.best - 1]
    # A log-probability only falls, no coverage is above 0, and a penalty by length helps the
    # longest most.
    longest = limit + 1 if beam.length_penalty > 0 else position + 1
    return bool(worst >= beam.normalized(highest, longest))
