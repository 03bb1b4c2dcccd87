"""Training of the head that weighs wishes, after the body, whose weights stay as they are.

The loss is that of FUDGE (Yang and Klein, 2021, section 3): at every position of a training target,
for the token that stands there, binary cross-entropy with what the whole target is. A target can
have several values: of levels that are near enough, each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.batching import sorted_batches, training_batches
from model.configuration import Precision
from model.contract import EncoderDecoder
from model.future import FutureHead
from model.training.loop import autocast, shift, to_device
from model.training.rows import TrainingRows
from model.vocabulary import PAD
from model.wishes import UNKNOWN, Wishes

STEPS, LEARNING_RATE = 600, 3e-3


@dataclass(frozen=True)
class LabelledRows:
    """Rows, and what their targets are."""

    rows: TrainingRows
    labels: np.ndarray
    """(rows, wishes) numbers of values, or `UNKNOWN`."""
    alike: np.ndarray
    """(values, values) whether what has one value, the first, also has another; always itself."""

    def known(self) -> np.ndarray:
        """The rows that have any label."""
        return np.flatnonzero((self.labels != UNKNOWN).any(axis=1))


@dataclass(frozen=True)
class Judged:
    """How well the head judges finished targets of held-out rows, by the likeliest value."""

    rows: int
    accuracy: float
    """Share of rows that have the likeliest value, from 0 to 1."""
    commonest: float
    """The share of rows that have the commonest value."""


def train_future(
    model: EncoderDecoder,
    wishes: Wishes,
    train: LabelledRows,
    *,
    vocabulary: int,
    batch_tokens: int,
    seed: int,
    device: torch.device,
    precision: Precision,
    on_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Gives the model a head for the wishes. The network must return states: see
    `model.training.telling.decoder_width`."""
    torch.manual_seed(seed)
    model.to(device).eval()
    chosen = train.known()
    lengths = train.rows.lengths[chosen]
    batches = training_batches(lengths, batch_tokens, seed)
    alike = torch.from_numpy(train.alike).to(device)
    head: FutureHead | None = None
    for step in range(STEPS):
        _, numbers = next(batches)
        rows = chosen[numbers]
        source, target = to_device(train.rows.batch(rows), device)
        states, tokens, row = _states(model, source, target, precision)
        if head is None:
            head = FutureHead(wishes, states.shape[1], vocabulary).to(device)
            optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, fused=True)
        labels = torch.from_numpy(train.labels[rows]).to(device)[row]
        loss = _loss(head, states, tokens, labels, alike)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        optimizer.step()
        on_step(step + 1)
    assert head is not None
    model.future = head.eval()


@torch.no_grad()
def judge(
    model: EncoderDecoder, rows: LabelledRows, batch_tokens: int, device: torch.device
) -> list[Judged]:
    """What the model's head says of finished targets, where they have a value."""
    assert model.future is not None
    wishes = model.future.wishes
    guesses = np.full(rows.labels.shape, UNKNOWN)
    chosen = rows.known()
    for batch in sorted_batches(rows.rows.lengths[chosen], 2 * batch_tokens):
        numbers = chosen[batch]
        source, target = to_device(rows.rows.batch(numbers), device)
        states, tokens, row = _states(model, source, target, "fp32")
        last = torch.cat([row[1:] != row[:-1], torch.ones(1, dtype=torch.bool, device=device)])
        scores = model.future.scores(states[last], tokens[last]).cpu().numpy()
        for column, (_, values) in enumerate(wishes.groups):
            guesses[numbers, column] = values.start + scores[:, list(values)].argmax(axis=1)
    judged = []
    for column, (_, values) in enumerate(wishes.groups):
        known = rows.labels[:, column] != UNKNOWN
        wanted = rows.labels[known, column]
        right = rows.alike[wanted, guesses[known, column]].mean() if known.any() else 0.0
        commonest = rows.alike[wanted][:, values].mean(axis=0).max() if known.any() else 0.0
        judged.append(Judged(int(known.sum()), float(right), float(commonest)))
    return judged


@torch.no_grad()
def _states(
    model: EncoderDecoder, source: dict[str, Tensor], target: Tensor, precision: Precision
) -> tuple[Tensor, Tensor, Tensor]:
    """States (tokens, width) before every target token of a batch, the tokens, and their rows."""
    with autocast("bf16" if precision == "bf16" else "fp32", target.device):
        states = model(source, shift(target)).states
    assert states is not None
    row, position = (target != PAD).nonzero(as_tuple=True)
    return states[row, position].float(), target[row, position], row


def _loss(
    head: FutureHead, states: Tensor, tokens: Tensor, labels: Tensor, alike: Tensor
) -> Tensor:
    """Mean binary cross-entropy over tokens and values, where a row has a value of the wish."""
    scores = head.scores(states, tokens)
    values = torch.arange(scores.shape[1], device=scores.device)
    of_value = head.groups.argmax(dim=0)  # the wish of each value
    known = (labels != UNKNOWN)[:, of_value]
    is_value = alike[labels[:, of_value], values].to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(scores, is_value, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
