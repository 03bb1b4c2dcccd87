"""The parity gate: an export that does not compute what its model computes is not published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exports.decoding.greedy import greedy
from exports.decoding.stepper import Source, Stepper
from model.vocabulary import BOS, EOS

Batch = tuple[Source, np.ndarray]
"""Sources and the most tokens to decode for each row."""


class ParityError(RuntimeError):
    """ONNX and PyTorch differ by more than the tolerance, or decode different tokens; or a lower
    precision loses more than is allowed."""


@dataclass(frozen=True)
class Parity:
    """How many rows were decoded with both, and in how many all tokens are the same. In the other
    rows they diverge where PyTorch's logits of both tokens are within the tolerance."""

    rows: int
    tokens_agree: int


def same_logits(
    model: Stepper, graphs: Stepper, batches: Sequence[Batch], tolerance: float
) -> float:
    """The largest difference of a logit along the tokens that the model decodes.

    Args:
        tolerance: the largest difference that passes; the same sums in another order differ by
            about 1e-5 in fp32.

    Raises:
        ParityError: a logit differs by more.
    """
    largest = 0.0
    for source, limits in batches:
        tokens = [hypothesis.tokens for hypothesis in greedy(model, source, limits)]
        logits = (logits_along(stepper, source, tokens) for stepper in (model, graphs))
        for ours, theirs in zip(*logits, strict=True):
            largest = max(largest, float(np.abs(ours - theirs).max()))
    if largest > tolerance:
        raise ParityError(
            f"ONNX differs from PyTorch: largest difference of a logit {largest:.2e} (tolerance "
            f"{tolerance:.0e}); nothing was published"
        )
    return largest


def same_tokens(
    model: Stepper, graphs: Stepper, batches: Iterable[Batch], tolerance: float
) -> Parity:
    """Decodes with both, greedily.

    Args:
        tolerance: as for `same_logits`.

    Raises:
        ParityError: a row's tokens differ although the model's choice was clear: the logits of the
            two tokens where they diverge differ by more than the tolerance.
    """
    rows, differ, widest = 0, 0, 0.0
    for source, limits in batches:
        ours, theirs = (
            [[*hypothesis.tokens, EOS] for hypothesis in greedy(stepper, source, limits)]
            for stepper in (model, graphs)
        )
        parted = {
            row: next(n for n, ids in enumerate(zip(*pair, strict=False)) if ids[0] != ids[1])
            for row, pair in enumerate(zip(ours, theirs, strict=True))
            if pair[0] != pair[1]
        }
        rows, differ = rows + len(ours), differ + len(parted)
        if parted:
            logits = list(logits_along(model, source, [row[:-1] for row in ours]))
            for row, step in parted.items():
                scores = logits[step][row]
                widest = max(widest, float(scores[ours[row][step]] - scores[theirs[row][step]]))
    if widest > tolerance:
        raise ParityError(
            f"ONNX decodes other tokens than PyTorch in {differ} of {rows} rows, where PyTorch's "
            f"choice is clear by up to {widest:.2e} (tolerance {tolerance:.0e}); nothing was "
            "published"
        )
    return Parity(rows, rows - differ)


def precision_loss(exact: Mapping[str, float], low: Mapping[str, float], allowed: float) -> float:
    """Mean loss of the scores in a lower precision.

    Args:
        exact: scores by name, higher is better, in fp32.
        low: the same in the lower precision.

    Raises:
        ParityError: it is more than allowed.
    """
    loss = sum(exact[name] - low[name] for name in exact) / len(exact)
    if loss > allowed:
        each = ", ".join(f"{name} {exact[name]:.2f} to {low[name]:.2f}" for name in exact)
        raise ParityError(
            f"the lower precision loses {loss:.2f} against fp32, more than {allowed:g} ({each}); "
            "nothing was published"
        )
    return loss


def logits_along(
    stepper: Stepper, source: Source, tokens: Sequence[Sequence[int]]
) -> Iterator[np.ndarray]:
    """Logits (rows, vocabulary) of every position of given outputs, and of their EOS."""
    longest = max(len(row) for row in tokens)
    forced = np.full((len(tokens), longest + 1), EOS, dtype=np.int64)
    for index, row in enumerate(tokens):
        forced[index, : len(row)] = row
    last = np.full(len(tokens), BOS, dtype=np.int64)
    state = stepper.start(source)
    for position in range(longest + 1):
        step_logits, state = stepper.step(state, last[:, None], position)
        yield step_logits[:, 0]
        last = forced[:, position].copy()


@dataclass(frozen=True)
class Stability:
    """Largest differences of a logit between computations that should agree."""

    batch: float
    """Between a row in a batch and the same row alone."""
    rerun: float
    """Between two computations of the same batch."""


def stability(
    stepper: Stepper, together: Source, alone: Sequence[Source], limits: np.ndarray
) -> Stability:
    """How much a row's logits change with its batch, and when nothing changes at all.

    Args:
        together: sources of some rows.
        alone: each of these rows as a batch of its own.
        limits: the most tokens to decode for each.
    """
    tokens = [hypothesis.tokens for hypothesis in greedy(stepper, together, limits)]
    first, again = (np.stack(list(logits_along(stepper, together, tokens))) for _ in "ab")
    apart = 0.0
    for index, source in enumerate(alone):
        own = np.stack(list(logits_along(stepper, source, [tokens[index]])))[:, 0]
        apart = max(apart, float(np.abs(own - first[: len(own), index]).max()))
    return Stability(apart, float(np.abs(first - again).max()))
