"""Greedy decoding and sampling, written once over the step protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exports.decoding.constraints import Constraints
from exports.decoding.hypotheses import KEPT_ROWS, Hypothesis, log_softmax_at, still_running
from exports.decoding.sampling import Sampling, draw_tokens, draws
from exports.decoding.stepper import Source, Stepper
from model.vocabulary import BOS, EOS


def greedy(
    stepper: Stepper,
    source: Source,
    limits: np.ndarray,
    sampling: Sampling | None = None,
    keys: Sequence[str] = (),
    constraints: Constraints | None = None,
) -> list[Hypothesis]:
    """Takes the most probable token at every step, until EOS or the row's token limit.

    Finished rows leave the batch once they are a tenth of it, so that the rest runs faster; which
    rows run together does not change the output. The stepper's `stride` sets how many steps run
    before the loop checks for finished rows.

    Args:
        source: arrays (batch, ...), padded.
        limits: (batch,) maximum number of tokens of each row, EOS not counted.
        sampling: draws tokens or the latent variable instead, by each row's key.
        constraints: rules for the output; a row with no allowed next token stays unfinished.
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
            alive = still_running(running)
            state = stepper.keep(state, alive)
            rows, left, running, last = rows[alive], left[alive], running[alive], last[alive]
        if rules is None and draw is None:
            steps = min(stepper.stride, int(left.max()))
            tokens, gained, state = stepper.advance(state, last, position, steps)
            last = tokens[:, -1]
        else:
            step_logits, state = stepper.step(state, last[:, None], position)
            logits = possible = step_logits[:, 0]
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
        # Tokens of rows that no longer run are beyond their lengths, and so ignored.
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
