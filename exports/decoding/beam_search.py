"""Beam search over the step protocol, with constraints on the output.

Several hypotheses of each source run in parallel and share its memory and history. The search does
not depend on the code that computes the steps; see `exports.decoding.stepper` for the protocol and
`exports.decoding.greedy` for greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from exports.decoding.constraints import Constraints
from exports.decoding.hypotheses import KEPT_ROWS, Hypothesis, continued, log_softmax, still_running
from exports.decoding.stepper import Best, Source, Stepper
from model.names import ATTENTION
from model.vocabulary import BOS, EOS

Stop = Literal["likely", "bound"]
LEAST = 1e-30
"""Lower bound of attention before the logarithm, because fp32 may round attention to 0."""


@dataclass(frozen=True)
class BeamSearch:
    """How wide the search is, what it prefers and when it stops."""

    size: int = 4
    """Beam size: hypotheses of each source that run in parallel."""
    length_penalty: float = 1.0
    """Scores are divided by (tokens, EOS counted) to this power: fairseq's `--lenpen`, Hugging
    Face's and CTranslate2's `length_penalty`. 0 leaves the log-probability as it is."""
    best: int = 1
    """Hypotheses returned for each source (n-best), at most `size`."""
    stop: Stop = "likely"
    """likely: stop when no running hypothesis would overtake the worst of the `best` finished ones
    if it ended now (Hugging Face's `early_stopping=False` is similar, but waits for `size` finished
    ones). bound: stop when none can still do so, however it continues (Huang et al., 2017, section
    3). To stop once `size` have finished, as fairseq does, would miss what is longer and by far
    more probable: where the model is sure, others finish first only because there are places left
    for them."""
    coverage: float = 0.0
    """Weight of the coverage penalty (Wu et al., 2016, equation 14), which is added to scores of
    hypotheses that leave source positions without attention. It needs a stepper that returns
    attention."""

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.best <= self.size:
            raise ValueError(
                f"beam: size {self.size} must be at least best {self.best}, and best at least 1"
            )

    def normalized(self, score: Any, length: Any) -> Any:
        """Log-probabilities with the length penalty, EOS counted, for comparing hypotheses."""
        return score / length**self.length_penalty

    def scored(self, score: Any, length: int, coverage: Any) -> Any:
        """Log-probabilities with the length penalty, EOS counted, and the coverage penalty."""
        return self.normalized(score, length) + self.coverage * coverage

    def score_of(self, hypothesis: Hypothesis) -> float:
        """A hypothesis's score, normalised by its own length."""
        length = max(1, len(hypothesis.tokens) + hypothesis.finished)
        return float(self.scored(hypothesis.score, length, hypothesis.coverage))


class Found(NamedTuple):
    """A hypothesis that has stopped running; most of them are never looked at again."""

    score: float
    """Normalised by length, coverage penalty included."""
    tokens: np.ndarray
    gains: np.ndarray
    finished: bool
    coverage: float


def ranked(results: Sequence[Found], best: int) -> list[Hypothesis]:
    """The `best` results. Ties keep the order in which they were found; finished hypotheses come
    before those that reached their length limit."""
    order = sorted(results, key=lambda result: (not result.finished, -result.score))
    return [
        Hypothesis(result.tokens.tolist(), result.gains.tolist(), result.finished, result.coverage)
        for result in order[:best]
    ]


def beam_search(
    stepper: Stepper,
    source: Source,
    limits: np.ndarray,
    beam: BeamSearch,
    constraints: Constraints | None = None,
) -> list[list[Hypothesis]]:
    """The `beam.best` hypotheses of every source, the best first, all different.

    A step considers the 2 · size best continuations of a source, as in fairseq: the best `size` of
    those without EOS continue, and those with EOS have finished if they are among the best `size`
    of all. With size 1 this is greedy decoding. A row's result does not depend on the other rows in
    the batch.

    Args:
        source: arrays (batch, ...), padded.
        limits: (batch,) maximum number of tokens of each row, EOS not counted.
    """
    rules = constraints or Constraints()
    if beam.coverage and not stepper.attentive:
        raise ValueError("a coverage penalty needs graphs exported with attention: true")
    batch, size = len(limits), beam.size
    nothing = Found(0.0, np.zeros(0, dtype=np.int64), np.zeros(0), False, 0.0)
    results: list[list[Found]] = [[nothing] if limit <= 0 else [] for limit in limits]
    finished = np.zeros(batch, dtype=np.int64)
    sources, running = np.arange(batch), limits > 0
    state = stepper.start(source)
    # Before the first token, each source has only one hypothesis.
    last = np.full((batch, 1), BOS, dtype=np.int64)
    scores = np.zeros((batch, 1))
    generated = np.zeros((batch, 1, 0), dtype=np.int64)
    earned = np.zeros((batch, 1, 0))
    attended = np.zeros((batch, 1, 1))
    position = 0

    def stop(at: Any, gains: np.ndarray, totals: np.ndarray, ended: bool) -> None:
        """Records that the hypotheses with the indices `at` have stopped running."""
        index, words = at[0], generated[at]
        coverage = _coverage(attended[at]) if beam.coverage else np.zeros(len(index))
        reached = beam.scored(totals, position, coverage)
        numbers = zip(sources[index].tolist(), reached.tolist(), coverage.tolist(), strict=True)
        for number, (row, score, part) in enumerate(numbers):
            results[row].append(Found(score, words[number], gains[number], ended, part))

    while count := np.count_nonzero(running):
        if count <= KEPT_ROWS * len(sources):
            alive = still_running(running)
            state = stepper.keep(state, alive)
            sources, running = sources[alive], running[alive]
            last, scores, generated, earned = (
                last[alive],
                scores[alive],
                generated[alive],
                earned[alive],
            )
            attended = attended[alive]
        best, state = _continuations(
            stepper, state, last, position, 2 * size, rules, generated, sources
        )
        if beam.coverage:
            attended = attended + stepper.told(state, ATTENTION)
        total = (scores[:, :, None] + best.gains).reshape(len(sources), -1)
        each = np.arange(len(sources))[:, None]
        order = np.argsort(-total, axis=1, kind="stable")[:, : 2 * size]
        parents, choice = np.divmod(order, best.tokens.shape[2])
        values = total[each, order]
        tokens, gains = best.tokens[each, parents, choice], best.gains[each, parents, choice]
        possible = values > -np.inf
        position += 1
        ends = (tokens == EOS) & possible
        index, rank = np.nonzero(ends[:, :size] & running[:, None])
        if len(index):
            past = index, parents[index, rank]
            sums = np.concatenate([earned[past], gains[index, rank][:, None]], axis=1)
            stop(past, sums, values[index, rank], True)
            np.add.at(finished, sources[index], 1)
        # Those without EOS come first; each group keeps the order of its scores.
        order = np.argsort(ends | ~possible, axis=1, kind="stable")[:, :size]
        scores = np.where(ends, -np.inf, values)[each, order]
        parents, last, gains = parents[each, order], tokens[each, order], gains[each, order]
        generated = np.concatenate([continued(generated, parents), last[:, :, None]], axis=2)
        attended = continued(attended, parents) if beam.coverage else attended
        earned = np.concatenate([continued(earned, parents), gains[:, :, None]], axis=2)
        highest, cut = scores.max(axis=1), limits[sources] <= position
        done = cut | (highest == -np.inf)
        if size == 1:  # greedy decoding
            done |= finished[sources] > 0
        waiting = np.flatnonzero(running & ~done & (finished[sources] >= beam.best))
        if len(waiting):
            rows = sources[waiting]
            hopes = _hopes(beam, scores[waiting], attended[waiting], position, limits[rows])
            done[waiting] = [
                _worst(results[row], beam.best) >= hope
                for row, hope in zip(rows, hopes, strict=True)
            ]
        index, rank = np.nonzero((scores > -np.inf) & (running & cut)[:, None])
        if len(index):
            at = index, rank
            stop(at, earned[at], scores[at], False)
        running &= ~done
        if running.any():
            state = stepper.reorder(state, parents)
    return [ranked(candidates, beam.best) for candidates in results]


def _coverage(attended: np.ndarray) -> np.ndarray:
    """Σ log min(attention, 1), of attention (..., source) summed over all steps."""
    coverage: np.ndarray = np.log(np.clip(attended, LEAST, 1)).sum(axis=-1)
    return coverage


def _continuations(
    stepper: Stepper,
    state: Any,
    last: np.ndarray,
    position: int,
    count: int,
    rules: Constraints,
    generated: np.ndarray,
    sources: np.ndarray,
) -> tuple[Best, Any]:
    """The `count` best tokens after every hypothesis, or all if there are fewer."""
    if not rules.any:
        return stepper.best(state, last, position, count)
    logits, state = stepper.step(state, last, position)
    batch, hypotheses, vocabulary = logits.shape
    gains = log_softmax(logits.reshape(-1, vocabulary)).astype(np.float64)
    rules.forbid(gains, generated.reshape(len(gains), -1), np.repeat(sources, hypotheses))
    best = _largest(gains, min(count, vocabulary))
    shape = (batch, hypotheses, -1)
    return Best(best.reshape(shape), np.take_along_axis(gains, best, axis=1).reshape(shape)), state


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices (rows, count) of the largest values of each row, largest first; ties by index."""
    places = np.argpartition(-values, count - 1, axis=1)[:, :count]
    places.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _worst(finished: Sequence[Found], best: int) -> float:
    """The score of the worst of the `best` finished hypotheses."""
    return sorted((hypothesis.score for hypothesis in finished), reverse=True)[best - 1]


def _hopes(
    beam: BeamSearch, scores: np.ndarray, attended: np.ndarray, position: int, limits: np.ndarray
) -> np.ndarray:
    """What the running hypotheses of each source can reach (rows,), as `beam.stop` sees it.

    Args:
        scores, attended: log-probabilities (rows, hypotheses), and attention over their source.
    """
    hopes: np.ndarray
    if beam.stop == "likely":
        coverage = _coverage(attended) if beam.coverage else 0.0
        hopes = beam.scored(scores, position + 1, coverage).max(axis=1)
    else:
        # A log-probability only falls, coverage is never above 0, and the length penalty favours
        # the longest hypothesis most.
        longest = limits + 1 if beam.length_penalty > 0 else position + 1
        hopes = beam.normalized(scores.max(axis=1), longest)
    return hopes
