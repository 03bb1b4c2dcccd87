"""Beam search over the step protocol, with what may and may not be said.

Several hypotheses of every source run side by side and share its memory and history. Knows nothing
of what takes the steps; see `exports.decoding.greedy` for the protocol and for greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from exports.decoding.constraints import Constraints
from exports.decoding.history import continued
from exports.decoding.hypotheses import KEPT_ROWS, Hypothesis, log_softmax, still_running
from exports.decoding.stepper import Best, Source, Stepper
from model.vocabulary import BOS, EOS

Stop = Literal["first", "bound"]
LEAST = 1e-30
"""Attention that fp32 rounds to nothing counts as this much."""


@dataclass(frozen=True)
class BeamSearch:
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

    def normalized(self, score: Any, length: int) -> Any:
        """Log-probabilities by length, EOS counted: what hypotheses are compared by."""
        return score / length**self.length_penalty

    def scored(self, score: Any, length: int, coverage: Any) -> Any:
        """Log-probabilities by length, EOS counted, and what was read of the source."""
        return self.normalized(score, length) + self.coverage * coverage

    def score_of(self, hypothesis: Hypothesis) -> float:
        """A hypothesis' score by its own length."""
        length = max(1, len(hypothesis.tokens) + hypothesis.finished)
        return float(self.scored(hypothesis.score, length, hypothesis.coverage))


class Found(NamedTuple):
    """A hypothesis that runs no longer; most of them are never looked at again."""

    score: float
    """By its length, coverage counted."""
    tokens: np.ndarray
    gains: np.ndarray
    finished: bool
    coverage: float


def ranked(found: Sequence[Found], best: int) -> list[Hypothesis]:
    """The best; of equals the earlier found, and what reached its limit after what finished."""
    order = sorted(found, key=lambda one: (not one.finished, -one.score))
    return [
        Hypothesis(one.tokens.tolist(), one.gains.tolist(), one.finished, one.coverage)
        for one in order[:best]
    ]


def beam_search(
    stepper: Stepper,
    source: Source,
    limits: np.ndarray,
    beam: BeamSearch,
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
    nothing = Found(0.0, np.zeros(0, dtype=np.int64), np.zeros(0), False, 0.0)
    found: list[list[Found]] = [[nothing] if limit <= 0 else [] for limit in limits]
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

    def stop(at: Any, gains: np.ndarray, totals: np.ndarray, ended: bool) -> None:
        """Hypotheses `at` their places run no longer."""
        index, words = at[0], said[at]
        coverage = _coverage(read[at]) if beam.coverage else np.zeros(len(index))
        reached = beam.scored(totals, position, coverage)
        numbers = zip(sources[index].tolist(), reached.tolist(), coverage.tolist(), strict=True)
        for number, (row, score, part) in enumerate(numbers):
            found[row].append(Found(score, words[number], gains[number], ended, part))

    while count := np.count_nonzero(running):
        if count <= KEPT_ROWS * len(sources):
            kept = still_running(running)
            state = stepper.keep(state, kept)
            sources, running = sources[kept], running[kept]
            last, scores, said, earned = last[kept], scores[kept], said[kept], earned[kept]
            read = read[kept]
        best, state = _continuations(stepper, state, last, position, 2 * size, rules, said, sources)
        if beam.coverage:
            read = read + stepper.attention(state)
        total = (scores[:, :, None] + best.gains).reshape(len(sources), -1)
        each = np.arange(len(sources))[:, None]
        order = np.argsort(-total, axis=1, kind="stable")[:, : 2 * size]
        parents, place = np.divmod(order, best.tokens.shape[2])
        values = total[each, order]
        tokens, gains = best.tokens[each, parents, place], best.gains[each, parents, place]
        possible = values > -np.inf
        position += 1
        ends = (tokens == EOS) & possible
        index, rank = np.nonzero(ends[:, :size] & running[:, None])
        if len(index):
            past = index, parents[index, rank]
            sums = np.concatenate([earned[past], gains[index, rank][:, None]], axis=1)
            stop(past, sums, values[index, rank], True)
            np.add.at(finished, sources[index], 1)
        # Those that do not end first, each kind in the order of its scores.
        order = np.argsort(ends | ~possible, axis=1, kind="stable")[:, :size]
        scores = np.where(ends, -np.inf, values)[each, order]
        parents, last, gains = parents[each, order], tokens[each, order], gains[each, order]
        said = np.concatenate([continued(said, parents), last[:, :, None]], axis=2)
        read = continued(read, parents) if beam.coverage else read
        earned = np.concatenate([continued(earned, parents), gains[:, :, None]], axis=2)
        highest, cut = scores.max(axis=1), limits[sources] <= position
        done = cut | (highest == -np.inf)
        if beam.stop == "first":
            done |= finished[sources] >= size
        else:
            for number in np.flatnonzero(running & ~done & (finished[sources] >= beam.best)):
                row = sources[number]
                done[number] = _bounded(
                    beam, found[row], float(highest[number]), position, int(limits[row])
                )
        index, rank = np.nonzero((scores > -np.inf) & (running & cut)[:, None])
        if len(index):
            at = index, rank
            stop(at, earned[at], scores[at], False)
        running &= ~done
        if running.any():
            state = stepper.reorder(state, parents)
    return [ranked(one, beam.best) for one in found]


def _coverage(read: np.ndarray) -> np.ndarray:
    """Σ log min(attention, 1), of attention (rows, source) summed over all steps."""
    found: np.ndarray = np.log(np.clip(read, LEAST, 1)).sum(axis=1)
    return found


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
    beam: BeamSearch, finished: Sequence[Found], highest: float, position: int, limit: int
) -> bool:
    """Whether no hypothesis that runs can get past the worst that is kept."""
    worst = sorted((one.score for one in finished), reverse=True)[beam.best - 1]
    # A log-probability only falls, no coverage is above 0, and a penalty by length helps the
    # longest most.
    longest = limit + 1 if beam.length_penalty > 0 else position + 1
    return bool(worst >= beam.normalized(highest, longest))
