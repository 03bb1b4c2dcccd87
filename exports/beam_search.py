"""Beam search over the step protocol, with what may and may not be said.

Several hypotheses of every source run side by side, as rows of one batch. Knows nothing of what
takes the steps; see `exports.decoding` for the protocol and for greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exports.constraints import Constraints
from exports.decoding import Hypothesis, Source, Stepper, log_softmax
from model.vocabulary import BOS, EOS

Stop = Literal["first", "bound"]


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
        return float(self.normalized(hypothesis.score, max(1, length)))

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
    batch, size = len(limits), beam.size
    found: list[list[Hypothesis]] = [[] for _ in range(batch)]
    for row in np.flatnonzero(limits <= 0):
        found[row].append(Hypothesis([], 0.0, False))
    sources = np.flatnonzero(limits > 0)
    # One row a source at first: before the first token there is but one hypothesis.
    state = stepper.select(stepper.start(source), sources)
    width = 1
    last = np.full(len(sources), BOS, dtype=np.int64)
    scores = np.zeros((len(sources), 1))
    said = np.zeros((len(sources), 1, 0), dtype=np.int64)
    position = 0
    while len(sources):
        logits, state = stepper.step(state, last, position)
        gains = log_softmax(logits).astype(np.float64)
        rules.forbid(gains, said.reshape(len(last), -1), np.repeat(sources, width))
        vocabulary = gains.shape[1]
        total = (scores.reshape(-1, 1) + gains).reshape(len(sources), width * vocabulary)
        candidates = _largest(total, min(2 * size, total.shape[1]))
        values = np.take_along_axis(total, candidates, axis=1)
        parents, tokens = np.divmod(candidates, vocabulary)
        possible = values > -np.inf
        position += 1
        ends = (tokens == EOS) & possible
        for index, rank in zip(*np.nonzero(ends[:, :size]), strict=True):
            words = said[index, parents[index, rank]].tolist()
            found[sources[index]].append(Hypothesis(words, float(values[index, rank]), True))
        # Those that do not end first, each kind in the order of its scores.
        order = np.argsort(ends | ~possible, axis=1, kind="stable")[:, :size]
        scores = np.take_along_axis(np.where(ends, -np.inf, values), order, axis=1)
        parents = np.take_along_axis(parents, order, axis=1)
        tokens = np.take_along_axis(tokens, order, axis=1)
        grown = np.take_along_axis(said, parents[:, :, None], axis=1)
        said = np.concatenate([grown, tokens[:, :, None]], axis=2)
        rows = np.arange(len(sources))[:, None] * width + parents
        width = order.shape[1]
        done = np.array(
            [
                _done(beam, found[row], scores[index], position, int(limits[row]))
                for index, row in enumerate(sources)
            ]
        )
        for index in np.flatnonzero(done):
            row = sources[index]
            if position >= limits[row]:
                found[row] += [
                    Hypothesis(said[index, rank].tolist(), float(scores[index, rank]), False)
                    for rank in np.flatnonzero(scores[index] > -np.inf)
                ]
        kept = np.flatnonzero(~done)
        sources, scores, said, rows = sources[kept], scores[kept], said[kept], rows[kept]
        last = tokens[kept].reshape(-1)
        if len(sources):
            state = stepper.select(state, rows.reshape(-1))
    return [beam.ranked(one) for one in found]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places (rows, count) of the largest of each row, the largest first; of equals the first."""
    places = np.argpartition(-values, count - 1, axis=1)[:, :count]
    places.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _done(
    beam: Beam,
    finished: Sequence[Hypothesis],
    running: np.ndarray,
    position: int,
    limit: int,
) -> bool:
    """Whether a source needs no further step."""
    highest = float(running.max())
    if position >= limit or highest == -np.inf:
        return True
    if beam.stop == "first":
        return len(finished) >= beam.size
    if len(finished) < beam.best:
        return False
    worst = sorted(map(beam.score_of, finished), reverse=True)[beam.best - 1]
    # A log-probability only falls, and a penalty by length helps the longest most.
    longest = limit + 1 if beam.length_penalty > 0 else position + 1
    return bool(worst >= beam.normalized(highest, longest))
