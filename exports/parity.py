"""The parity gate: an export that does not compute what its model computes is not published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exports.decoding import Source, Stepper, greedy
from model.vocabulary import BOS, EOS


class ParityError(RuntimeError):
    """ONNX and PyTorch differ by more than the tolerance, or decode other tokens; or a lower
    precision loses more than is allowed."""


@dataclass(frozen=True)
class Parity:
    """What was compared: rows, the largest difference of a logit, rows whose tokens agree."""

    rows: int
    largest_difference: float
    tokens_agree: int


def compare(
    model: Stepper, graphs: Stepper, batches: Sequence[tuple[Source, np.ndarray]], tolerance: float
) -> Parity:
    """Decodes with both, and compares tokens and, along the model's tokens, every logit.

    Args:
        batches: sources and the most tokens to decode for each row.
        tolerance: the largest difference of a logit that passes; the same sums in another order
            differ by about 1e-5 in fp32.

    Raises:
        ParityError: a logit differs by more, or any row's tokens differ.
    """
    rows, agree, largest = 0, 0, 0.0
    for source, limits in batches:
        ours = greedy(model, source, limits)
        theirs = greedy(graphs, source, limits)
        agree += sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))
        rows += len(ours)
        largest = max(largest, _largest_difference(model, graphs, source, [h.tokens for h in ours]))
    if largest > tolerance or agree < rows:
        raise ParityError(
            f"ONNX differs from PyTorch: largest difference of a logit {largest:.2e} (tolerance "
            f"{tolerance:.0e}), same tokens in {agree} of {rows} rows; nothing was published"
        )
    return Parity(rows, largest, agree)


def precision_loss(exact: Mapping[str, float], low: Mapping[str, float], allowed: float) -> float:
    """What scores lose in a lower precision, the mean over them.

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


def _largest_difference(
    model: Stepper, graphs: Stepper, source: Source, tokens: Sequence[Sequence[int]]
) -> float:
    pairs = zip(
        logits_along(model, source, tokens), logits_along(graphs, source, tokens), strict=True
    )
    return max(float(np.abs(first - second).max()) for first, second in pairs)


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
        found, state = stepper.step(state, last[:, None], position)
        yield found[:, 0]
        last = forced[:, position].copy()


@dataclass(frozen=True)
class Stability:
    """Largest differences of a logit where none should be."""

    batch: float
    """Of a row in a batch and alone."""
    rerun: float
    """Of the same batch, computed twice."""


def stability(
    stepper: Stepper, together: Source, alone: Sequence[Source], limits: np.ndarray
) -> Stability:
    """How much a row's logits depend on what else is in its batch, and on nothing at all.

    Args:
        together: sources of some rows.
        alone: each of these rows as a batch of its own.
        limits: the most tokens to decode for each.
    """
    tokens = [found.tokens for found in greedy(stepper, together, limits)]
    first, again = (np.stack(list(logits_along(stepper, together, tokens))) for _ in "ab")
    apart = 0.0
    for index, source in enumerate(alone):
        own = np.stack(list(logits_along(stepper, source, [tokens[index]])))[:, 0]
        apart = max(apart, float(np.abs(own - first[: len(own), index]).max()))
    return Stability(apart, float(np.abs(first - again).max()))
