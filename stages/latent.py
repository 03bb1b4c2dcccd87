"""Whether a latent variable means anything: latents are exchanged between sources.

Each held-out row is decoded greedily with the latent at its prior's mean, with the posterior's mean
of its own source and target, and with that of another row. If the latent says how a sentence is
put, an exchanged one changes the wording and keeps the meaning; if it says nothing, the output
stays the same. How many nats it carries does not tell that: a large divergence can be noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from exports.decoding.batches import in_batches
from exports.decoding.greedy import greedy
from exports.decoding.stepper import Source
from exports.decoding.torch_stepper import TorchState, TorchStepper
from model.names import LATENT
from model.training.loop import shift, to_device
from model.training.rows import TrainingRows
from pipelines.contracts.scores import LatentExchange
from stages.validation import BATCH_TOKENS, bleu_of

if TYPE_CHECKING:
    from model.contract import EncoderDecoder
    from model.modalities.sources import SourceRows
    from model.modalities.target import TargetCodec
    from pipelines.contracts.tasks import Task
    from stages.features.feature_set import Rows

ROWS = 500
"""Rows of each task that are decoded, at most."""


class GivenLatents(TorchStepper):
    """Steps a model whose latent variables (batch, latent) are given."""

    def __init__(self, model: EncoderDecoder, latents: np.ndarray) -> None:
        super().__init__(model)
        self.latents = latents

    def start(self, source: Source, noise: np.ndarray | None = None) -> TorchState:
        state = super().start(source)
        state.memory[LATENT] = self._tensor(self.latents)
        return state


def posterior_means(model: EncoderDecoder, rows: TrainingRows) -> np.ndarray:
    """(rows, latent)."""
    device = next(model.parameters()).device

    @torch.inference_mode()  # here, because it holds for a thread alone
    def infer(chosen: np.ndarray) -> list[np.ndarray]:
        source, target = to_device(rows.batch(chosen), device)
        mean, _ = model.posterior(source, shift(target))
        return list(mean.float().cpu().numpy())

    return np.stack(in_batches(rows.lengths, BATCH_TOKENS, infer))


def exchanges(
    model: EncoderDecoder, rows: Rows, tasks: Mapping[str, Task], target: TargetCodec
) -> Iterator[LatentExchange]:
    """What exchanging latents does to held-out rows, for each task without labels that has several
    of them. The model is in evaluation mode."""
    of_task = np.array(rows.table["task"].to_list())
    for name in sorted(set(of_task.tolist())):
        chosen = np.flatnonzero(of_task == name)[:ROWS]
        if tasks[name].labels or len(chosen) < 2:
            continue
        source, wanted = rows.source.take(chosen), rows.target.take(chosen)
        references = [rows.table["reference"][int(row)] for row in chosen]
        own = posterior_means(model, TrainingRows(source, wanted))
        limits = target.limits(source.lengths.sum(axis=1), model.max_length)

        mean, with_own, exchanged = (
            target.decode(_tokens(model, source, limits, latents))
            for latents in (None, own, np.roll(own, 1, axis=0))
        )
        language = tasks[name].languages.get("target")
        yield LatentExchange(
            task=name,
            rows=len(chosen),
            changed=float(np.mean([a != b for a, b in zip(mean, exchanged, strict=True)])),
            bleu=bleu_of(mean, references, language),
            bleu_own=bleu_of(with_own, references, language),
            bleu_exchanged=bleu_of(exchanged, references, language),
        )


def _tokens(
    model: EncoderDecoder, source: SourceRows, limits: np.ndarray, latents: np.ndarray | None
) -> list[list[int]]:
    """Greedy outputs, with the latents given or at their prior's mean."""

    def decode(rows: np.ndarray) -> list[list[int]]:
        stepper = TorchStepper(model) if latents is None else GivenLatents(model, latents[rows])
        return [found.tokens for found in greedy(stepper, source.collate(rows), limits[rows])]

    return in_batches(source.lengths, BATCH_TOKENS, decode)
