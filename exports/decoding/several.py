"""Several outputs of every source: drawn together over one memory, then chosen for being good and
different from each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from exports.decoding.constraints import Constraints
from exports.decoding.hypotheses import KEPT_ROWS, Hypothesis, log_softmax_at, still_running
from exports.decoding.sampling import Sampling, draw_tokens, draws
from exports.decoding.stepper import Source, Stepper
from model.names import MET
from model.vocabulary import BOS, EOS

Utility = Callable[[Sequence[str]], np.ndarray]
"""How alike texts are: (texts, texts), from 0 to 1, symmetric."""
SCORE_WEIGHT = 0.6
"""Of the mean log-probability of a token, beside the consensus: of 0, 0.15, 0.3 and 0.6 the best or
level with the best on held-out sentences (benchmarks/README.md)."""
WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]|[^\W_]+|[^\w\s]|_")
"""A Chinese character, a word, or a sign."""


def draw_many(
    stepper: Stepper,
    source: Source,
    limits: np.ndarray,
    sampling: Sampling,
    keys: Sequence[str],
    count: int,
    constraints: Constraints | None = None,
) -> list[list[Hypothesis]]:
    """`count` outputs of every source, each what `greedy` draws with the key `KEY/NUMBER`. All
    draws of a source share its memory and one history of keys and values.

    Args:
        source: arrays (batch, ...), padded.
        limits: (batch,) maximum number of tokens of each row, EOS not counted.
        sampling: without a latent temperature, because the memory has one latent for all draws.
    """
    if sampling.latent_temperature:
        raise ValueError("draws of one source share its latent variable")
    batch, longest = len(limits), int(limits.max(initial=0))
    named = [f"{key}/{number}" for key in keys for number in range(count)]
    _, uniform = draws(sampling, named, stepper.latent, longest)
    uniform = uniform.reshape(batch, count, longest)
    decoded = np.zeros((batch, count, longest), dtype=np.int64)
    gains = np.zeros((batch, count, longest + 1))
    lengths = np.broadcast_to(limits[:, None], (batch, count)).copy()
    finished = np.zeros((batch, count), dtype=bool)
    met = np.zeros((batch, count))
    sources = np.arange(batch)
    running = np.broadcast_to(limits[:, None] > 0, (batch, count)).copy()
    state = stepper.start(source)
    last = np.full((batch, 1), BOS, dtype=np.int64)
    rules = constraints if constraints is not None and constraints.any else None
    for position in range(longest):
        alive = np.asarray(running.any(axis=1))
        if not alive.any():
            break
        if np.count_nonzero(alive) <= KEPT_ROWS * len(sources):
            kept = still_running(alive)
            state = stepper.keep(state, kept)
            sources, running, last = sources[kept], running[kept], last[kept]
        logits, state = stepper.step(state, last, position)
        hopes = stepper.told(state, MET) if stepper.judging else np.zeros(running.shape)
        if position == 0:  # so far, a source has one hypothesis
            logits = np.repeat(logits, count, axis=1)
            state = stepper.reorder(state, np.zeros((len(sources), count), dtype=np.int64))
        flat = logits.reshape(-1, logits.shape[2])
        possible = flat
        if rules is not None:
            possible = flat.copy()
            past = decoded[sources, :, :position].reshape(len(flat), position)
            rules.forbid(possible, past, np.repeat(sources, count))
            silenced = np.asarray(possible.max(axis=1) == -np.inf).reshape(running.shape)
            lengths[sources] = np.where(running & silenced, position, lengths[sources])
            running = running & ~silenced
            possible[silenced.ravel(), EOS] = 0
        drawn = draw_tokens(possible, sampling, uniform[sources, :, position].ravel())
        last = drawn.reshape(len(sources), count)
        decoded[sources, :, position] = last
        gains[sources, :, position] = log_softmax_at(flat, drawn).reshape(running.shape)
        ended = running & (last == EOS)
        lengths[sources] = np.where(ended, position, lengths[sources])
        finished[sources] |= ended
        met[sources] = np.where(running, hopes, met[sources])
        running = running & ~ended & (position + 1 < limits[sources])[:, None]
    return [
        [
            Hypothesis(
                tokens[:length].tolist(), earned[: length + done].tolist(), bool(done), met=likely
            )
            for tokens, length, earned, done, likely in zip(*row, strict=True)
        ]
        for row in zip(decoded, lengths, gains, finished, met.tolist(), strict=True)
    ]


def ngram_f1(texts: Sequence[str]) -> np.ndarray:
    """F1 of the sets of words and pairs of words, the beginning and end of a text being words."""
    grams = []
    for text in texts:
        words = ["", *WORD.findall(text), ""]
        grams.append({*words, *pairwise(words)})
    alike = [[2 * len(a & b) / (len(a) + len(b)) for b in grams] for a in grams]
    return np.array(alike).reshape(len(texts), len(texts))


@dataclass(frozen=True)
class Selection:
    """Which of several outputs are kept."""

    keep: int = 1
    variety: float = 0.0
    """Weight of being different from those that are kept already, from 0 to 1 (maximal marginal
    relevance: Carbonell and Goldstein, 1998)."""
    utility: Utility = ngram_f1

    def choose(self, texts: Sequence[str], hypotheses: Sequence[Hypothesis]) -> list[int]:
        """The numbers of the outputs that are kept, all with different texts, the best first.

        The best are those that are most like all others, which are what the model takes for
        probable (minimum Bayes risk over samples: Eikema and Aziz, 2020), and themselves probable,
        and that meet their wishes, if the model has a head that judges this. No reference is seen,
        and nothing depends on other sources.
        """
        first: dict[str, int] = {}
        best: dict[str, float] = {}
        for number, (text, hypothesis) in enumerate(zip(texts, hypotheses, strict=True)):
            first.setdefault(text, number)
            value = SCORE_WEIGHT * hypothesis.mean + hypothesis.met
            best[text] = max(value, best.get(text, value))
        different = list(first)
        alike = self.likeness(different)
        times = np.array([texts.count(text) for text in different])
        worth = alike @ times / len(texts) + np.array([best[text] for text in different])
        chosen: list[int] = []
        for _ in range(min(self.keep, len(different))):
            nearest = alike[:, chosen].max(axis=1) if chosen else np.zeros(len(different))
            value = (1 - self.variety) * worth - self.variety * nearest
            value[chosen] = -np.inf
            chosen.append(int(value.argmax()))
        return [first[different[index]] for index in chosen]

    def likeness(self, texts: Sequence[str]) -> np.ndarray:
        """What the utility says of the texts. Raises `ValueError` if that is not usable."""
        alike = np.asarray(self.utility(texts), dtype=np.float64)
        if alike.shape != (len(texts), len(texts)) or not np.isfinite(alike).all():
            name = getattr(self.utility, "__name__", self.utility)
            raise ValueError(
                f"the utility {name} must return a number for every two of {len(texts)} texts"
            )
        return alike


@dataclass(frozen=True)
class Drawing:
    """Several outputs of each source, of which some are kept."""

    count: int
    sampling: Sampling
    selection: Selection = Selection()
    tasks: frozenset[str] = frozenset()
    """Only for these tasks; for all if there are none."""
