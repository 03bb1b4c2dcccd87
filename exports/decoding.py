"""The decoding loop, written once over a step protocol.

A `Stepper` is anything that can start from a source and take one decoding step at a time: a
PyTorch model (`exports.torch_stepper`) and an ONNX Runtime session (`exports.session`) both are.
The loop knows neither; it deals in NumPy arrays of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from exports.constraints import Constraints
from model.batching import sorted_batches
from model.media import seeded
from model.vocabulary import BOS, EOS

Result = TypeVar("Result")
KEPT_ROWS = 0.9
"""Sources that are done leave a batch once no larger share of it still runs."""
STRIDE = 8
"""Greedy steps that are taken on another device before their tokens are fetched."""
Source = Mapping[str, np.ndarray]
"""A batch of sources: modality to an array (batch, ...)."""


class Best(NamedTuple):
    """The most probable continuations of every hypothesis, the best first."""

    tokens: np.ndarray
    """(batch, hypotheses, count) int64."""
    gains: np.ndarray
    """(batch, hypotheses, count) float64 natural-log probabilities."""


class Stepper(Protocol):
    """One decoding step at a time, of one or more hypotheses of every source. The state belongs to
    the stepper; the loop only passes it on."""

    latent: int
    """Dimensions of the latent variable; 0 for none."""
    attentive: bool
    """Whether `attention` can be asked for."""
    stride: int
    """Greedy steps to take between two looks at what was decoded: 1 where looking costs nothing,
    more where the results are on another device."""

    def start(self, source: Source, noise: np.ndarray | None = None) -> Any:
        """The state before the first step, with one hypothesis of each source. The latent variable
        is its prior's mean, plus the prior's deviation times `noise` (batch, latent)."""

    def step(self, state: Any, tokens: np.ndarray, position: int) -> tuple[np.ndarray, Any]:
        """Logits (batch, hypotheses, vocabulary) after the tokens (batch, hypotheses), and the
        state that follows. The state given has no further use: its memory may be written over."""

    def best(self, state: Any, tokens: np.ndarray, position: int, count: int) -> tuple[Best, Any]:
        """The same step, of which only the `count` best continuations are wanted, or all where
        there are fewer."""

    def advance(
        self, state: Any, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """Greedy steps after the tokens (batch,), of one hypothesis of each source, whatever comes,
        EOS too: tokens and their natural-log probabilities, both (batch, steps), and the state
        that follows."""

    def attention(self, state: Any) -> np.ndarray:
        """How much each hypothesis attended to each position of its source in the last step,
        (batch, hypotheses, source): sums to 1, and to padding 1, as if it had been read."""

    def keep(self, state: Any, rows: np.ndarray) -> Any:
        """The state of the given sources alone, in the order of `still_running`. It may reuse the
        memory of the state given, which has no further use."""

    def reorder(self, state: Any, parents: np.ndarray) -> Any:
        """The state in which hypotheses go on from `parents` (batch, hypotheses), of which there
        may be another number than before."""


@dataclass(frozen=True)
class Hypothesis:
    """What was decoded for one row."""

    tokens: list[int]
    """Without BOS and EOS."""
    gains: list[float]
    """Natural-log probability of each token, and of EOS where it was reached."""
    finished: bool
    """Whether EOS was reached."""
    coverage: float = 0.0
    """Σ log min(Σ attention, 1) over the positions of the source, where that is asked for."""

    @property
    def score(self) -> float:
        """Natural-log probability of the whole."""
        return sum(self.gains)


def still_running(running: np.ndarray) -> np.ndarray:
    """The rows that still run, in an order in which as few as possible move: those before the new
    end of the batch stay in place, those beyond it come into the gaps."""
    order = np.arange(running.sum())
    order[~running[: len(order)]] = len(order) + np.flatnonzero(running[len(order) :])
    return order


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural-log probabilities (batch, vocabulary)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def log_softmax_at(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Natural-log probabilities (batch,) of `tokens` under `logits` (batch, vocabulary)."""
    highest = logits.max(axis=1, keepdims=True)
    shifted = logits - highest
    chosen = shifted[np.arange(len(tokens)), tokens]
    np.exp(shifted, out=shifted)
    return chosen - np.log(shifted.sum(axis=1))


@dataclass(frozen=True)
class Sampling:
    """How a row is decoded otherwise than greedily with the latent variable at its mean."""

    temperature: float = 0.0
    """Logits are divided by it before a token is drawn; 0 takes the most probable."""
    top_k: int = 0
    """Only so many most probable tokens are drawn from (Fan et al., 2018, section 5.1); 0: all."""
    top_p: float = 1.0
    """Only the fewest most probable tokens that together reach this probability are drawn from
    (Holtzman et al., 2020, section 3.1), of those that `top_k` leaves."""
    latent_temperature: float = 0.0
    """Times the prior's deviation; 0 takes the prior's mean."""
    seed: int = 0


def draws(sampling: Sampling, keys: Sequence[str], latent: int, longest: int) -> Any:
    """Standard normal noise (batch, latent) and uniform numbers (batch, longest), each row's a
    function of the seed and its key alone, so that it does not matter who is in a batch."""
    generators = [seeded(sampling.seed, key) for key in keys]
    noise = np.stack([g.standard_normal(latent) for g in generators]) * sampling.latent_temperature
    return noise, np.stack([g.random(longest) for g in generators])


def draw_tokens(logits: np.ndarray, sampling: Sampling, uniform: np.ndarray) -> np.ndarray:
    """Tokens (batch,) drawn from softmax(logits / temperature), cut off as `sampling` says, by
    inverting the distribution at `uniform` (batch,)."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    if sampling.top_k or sampling.top_p < 1:
        order = np.argsort(-weights, axis=1, kind="stable")
        ranked = np.take_along_axis(weights, order, axis=1)
        if sampling.top_k:
            ranked[:, sampling.top_k :] = 0
        before = ranked.cumsum(axis=1) - ranked
        ranked[before >= sampling.top_p * ranked.sum(axis=1, keepdims=True)] = 0
        np.put_along_axis(weights, order, ranked, axis=1)
    reached = weights.cumsum(axis=1)
    chosen = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
    return np.minimum(chosen, logits.shape[1] - 1)


def greedy(
    stepper: Stepper,
    source: Source,
    limits: np.ndarray,
    sampling: Sampling | None = None,
    keys: Sequence[str] = (),
    constraints: Constraints | None = None,
) -> list[Hypothesis]:
    """The most probable token at every step, until EOS or the row's limit of tokens.

    Rows that have finished leave the batch once they are a tenth of it, so that the rest runs
    faster; which rows run together does not change what is decoded. How many steps are taken
    before that is seen is the stepper's to say.

    Args:
        source: arrays (batch, ...), padded.
        limits: (batch,) the most tokens each row may have, EOS not counted.
        sampling: draws tokens or the latent variable instead, by each row's key.
        constraints: what may be said; a row that may say nothing more stays unfinished.
    """
    batch = len(limits)
    noise, uniform = None, np.zeros((batch, 0))
    if sampling is not None:
        noise, uniform = draws(sampling, keys, stepper.latent, int(limits.max(initial=0)))
    decoded = np.zeros((batch, int(limits.max(initial=0))), dtype=np.int64)
    lengths = np.zeros(batch, dtype=np.int64)
    gains = np.zeros((batch, decoded.shape[1] + 1))
    finished = np.zeros(batch, dtype=bool)
    rows, left = np.arange(batch), limits
    running = limits > 0
    last = np.full(batch, BOS, dtype=np.int64)
    state = stepper.start(source, noise if stepper.latent else None)
    position = 0
    rules = constraints if constraints is not None and constraints.any else None
    draw = sampling if sampling is not None and sampling.temperature else None
    while count := np.count_nonzero(running):
        if count <= KEPT_ROWS * len(rows):
            kept = still_running(running)
            state = stepper.keep(state, kept)
            rows, left, running, last = rows[kept], left[kept], running[kept], last[kept]
        if rules is None and draw is None:
            steps = min(stepper.stride, int(left.max()))
            tokens, gained, state = stepper.advance(state, last, position, steps)
            last = tokens[:, -1]
        else:
            found, state = stepper.step(state, last[:, None], position)
            logits = possible = found[:, 0]
            if rules is not None:
                possible = logits.copy()
                rules.forbid(possible, decoded[rows, :position], rows)
                silenced = possible.max(axis=1) == -np.inf
                lengths[rows[running & silenced]] = position
                running &= ~silenced
                possible[silenced, EOS] = 0
            if draw is not None:
                last = draw_tokens(possible, draw, uniform[rows, position])
            else:
                last = possible.argmax(axis=1)
            tokens, gained = last[:, None], log_softmax_at(logits, last)[:, None]
        # What rows that no longer run get is beyond their lengths.
        steps = tokens.shape[1]
        decoded[rows, position : position + steps] = tokens
        gains[rows, position : position + steps] = gained
        ends = tokens == EOS
        if ends.any() or left.min() <= steps:
            first = np.where(ends.any(axis=1), ends.argmax(axis=1), steps)
            ended = running & (first < np.minimum(left, steps))
            stopped = ended | (running & (left <= steps))
            lengths[rows[stopped]] = position + np.where(ended, first, left)[stopped]
            finished[rows[ended]] = True
            running &= ~stopped
        left = left - steps
        position += steps
    return [
        Hypothesis(tokens[:length].tolist(), earned[: length + done].tolist(), bool(done))
        for tokens, length, earned, done in zip(decoded, lengths, gains, finished, strict=True)
    ]


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


def length_limits(lengths: np.ndarray, longest: int) -> np.ndarray:
    """The most tokens to decode for sources of these lengths: twice as many and ten, as fairseq's
    `max_len_a` and `max_len_b` are commonly set, and never more than the model takes."""
    return np.minimum(lengths * 2 + 10, longest - 1)


def in_batches(
    lengths: np.ndarray,
    budget: int,
    decode: Callable[[np.ndarray], Sequence[Result]],
    on_rows: Callable[[int], None] = lambda _: None,
    threads: int = 1,
) -> list[Result]:
    """Applies `decode` to row numbers in batches of like length, and puts the results in order.

    Args:
        lengths: (rows,) or (rows, modalities) positions of each row.
        budget: padded positions in a batch.
        on_rows: told how many rows each batch finished.
        threads: batches at the same time. Whole batches side by side keep cores busier than the
            small matrices of one step, split, would.
    """
    results: list[Any] = [None] * len(lengths)
    batches = sorted_batches(lengths, budget)
    with ThreadPoolExecutor(threads) as pool:
        for rows, decoded in zip(batches, pool.map(decode, batches), strict=True):
            for row, result in zip(rows, decoded, strict=True):
                results[row] = result
            on_rows(len(rows))
    return results
