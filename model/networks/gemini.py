"""Gemini: from any modalities, alone or together, to text; with a variational latent if asked.

Every modality has its own embedding, and goes through the single-modality layer, where it attends
only to itself. A record with one modality is then ready; one with several also goes through the
fusion layer, where each modality attends to the others, as in LXMERT (Tan and Bansal, 2019,
section 2.2). A shared Transformer encoder and decoder follow. A batch may have rows of both kinds,
and no row sees the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from model.configuration import GeminiConfig
from model.contract import Output, Tensors
from model.modalities.embedding import SourceEmbedding
from model.modalities.known import MEDIA, load, modalities_in
from model.modalities.sources import Sizes
from model.names import LATENT, PRIOR_DEVIATION, PRIOR_MEAN
from model.networks.layers import EncoderLayer, padding_mask
from model.networks.transformer import Transformer
from model.vocabulary import BOS, EOS, MASKED, PAD

LOG_VARIANCE = 6.0
"""Largest magnitude of a log variance, so that numbers stay finite."""


class Gaussian(nn.Module):
    """A diagonal normal distribution from a vector: mean and log variance, each (B, latent)."""

    def __init__(self, inputs: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, 2 * latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.output(torch.tanh(self.hidden(x))).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)


def mean_of(x: Tensor, present: Tensor) -> Tensor:
    """The mean (B, W) of the vectors (B, S, W) that are present (B, S); zeros where none is."""
    weight = present.to(x.dtype)[:, :, None]
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def gaussian_divergence(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor, prior_log_variance: Tensor
) -> Tensor:
    """KL(q ‖ p) in nats of diagonal normals, by dimension (Kingma and Welling, 2014, appendix B,
    for a prior that is not standard)."""
    ratio = torch.exp(log_variance - prior_log_variance)
    distance = (mean - prior_mean) ** 2 * torch.exp(-prior_log_variance)
    return 0.5 * (prior_log_variance - log_variance + ratio + distance - 1)


class Gemini(Transformer):
    """See the module. Memory and cache are the Transformer's, plus those of the latent variable:
    `prior_mean` and `prior_deviation`, or in `step` the `latent`, all (B, latent)."""

    def __init__(self, config: GeminiConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        width = config.width
        self.sizes, self.latent = dict(sizes), config.latent
        self.modalities = modalities_in(sizes)
        if "text" not in self.modalities and not sizes["shared"]:
            del self.source_embedding
        self.readers = nn.ModuleDict(
            {
                name: load(MEDIA[name].embedding)(sizes, width, config.max_length)
                for name in self.modalities
                if name != "text"
            }
        )
        if len(self.modalities) > 1:
            self.modality_embedding = nn.Embedding(len(self.modalities), width)
            self.fusion = EncoderLayer(config)
        self.single = EncoderLayer(config)
        if sizes["tasks"] > 1:
            self.task_embedding = nn.Embedding(sizes["tasks"], width)
        if self.latent:
            self.prior = Gaussian(width, width, self.latent)
            self.target_words = nn.Linear(width, width)
            self.recognition = Gaussian(2 * width, width, self.latent)
            self.latent_projection = nn.Linear(self.latent, width)
        self.reset_parameters()
        if self.latent:
            # Starts at zero: otherwise training must first unlearn noise in every target embedding.
            nn.init.zeros_(self.latent_projection.weight)

    def check(self, sizes: Sizes) -> None:
        if not modalities_in(sizes):
            raise ValueError("the features have no source: neither text nor another modality")

    def embed_source(self, source: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """All modalities concatenated: vectors (B, S, W), a mask (B, S) of those present, and the
        number of each position's modality (S,)."""
        vectors, presence, kinds = [], [], []
        for number, name in enumerate(self.modalities):
            present = source["text"] != PAD if name == "text" else source[f"{name}_length"] > 0
            if not self.is_worth_reading(present):
                continue
            if name == "text":
                x = self.embed(self.source_embedding, source["text"])
            else:
                x, present = self.readers[name](source[name], source[f"{name}_length"])
                x = self.dropout(x)
            if len(self.modalities) > 1:
                x = x + self.modality_embedding.weight[number]
            vectors.append(x)
            presence.append(present)
            kinds.append(torch.zeros_like(present[0], dtype=torch.long) + number)
        if not vectors:
            batch = len(source[f"{self.modalities[0]}"])
            device = self.output_bias.device
            empty = torch.zeros(batch, 1, self.config.width, device=device)
            missing = torch.zeros(batch, 1, dtype=torch.bool, device=device)
            return empty, missing, torch.zeros(1, dtype=torch.long, device=device)
        return torch.cat(vectors, dim=1), torch.cat(presence, dim=1), torch.cat(kinds)

    def is_worth_reading(self, present: Tensor) -> bool:
        """Whether any row has a modality; a modality that no row has is skipped."""
        return bool(present.any())

    def branches(self, several: Tensor) -> tuple[bool, bool]:
        """Whether any row, and whether every row, goes through the fusion layer, given (B,): only
        what is needed runs."""
        return bool(several.any()), bool(several.all())

    def branch(self, x: Tensor, present: Tensor, kinds: Tensor) -> Tensor:
        """The single-modality layer, in which each modality attends only to itself, and for rows of
        several modalities the fusion layer, in which each attends only to the others."""
        mask = padding_mask(present)
        if len(self.modalities) < 2:
            return self.encode_through([self.single], x, mask)
        numbers = torch.arange(len(self.modalities), device=kinds.device)
        has = (present[:, None, :] & (kinds[None, None, :] == numbers[None, :, None])).any(dim=2)
        several = has.sum(dim=1) > 1  # (batch,)
        fuses, fuses_all = self.branches(several)
        if not fuses:
            return self.encode_through([self.single], x, mask)
        same = (kinds[:, None] == kinds[None, :]).to(torch.float32)  # (S, S)
        x = self.encode_through([self.single], x, mask + ((1 - same) * MASKED)[None, None])
        fused = self.encode_through([self.fusion], x, mask + (same * MASKED)[None, None])
        if fuses_all:
            return fused
        return torch.where(several[:, None, None], fused, x)

    def encode_present(self, source: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's last layer (B, S, W) and a mask (B, S) of the positions present."""
        x, present, kinds = self.embed_source(source)
        x = self.branch(x, present, kinds)
        if self.sizes["tasks"] > 1:
            task = self.task_embedding(source["task"]) * self.embedding_scale
            x = torch.cat([task[:, None, :].to(x.dtype), x], dim=1)
            present = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
        x = self.encode_through(self.encoder, x, padding_mask(present))
        return self.encoder_norm(x), present

    def embed_latent(self, latent: Tensor) -> Tensor:
        """What the latent variable (B, latent) adds to every target embedding, (B, W)."""
        return self.latent_projection(latent)

    def summary(self, target: Tensor) -> Tensor:
        """A vector (B, W) of the whole target (B, T), for the posterior: a mean over its tokens
        and their positions, because an attention layer here would cost as much as a layer of the
        decoder."""
        present = (target != PAD) & (target != BOS) & (target != EOS)
        x = self.embed(self.target_embedding, target)
        return mean_of(torch.tanh(self.target_words(x)), present)

    def infer(
        self, hidden: Tensor, present: Tensor, target: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The posterior's mean and log variance, and its divergence from the prior by dimension."""
        pooled = mean_of(hidden, present)
        joined = torch.cat([pooled, self.summary(target).to(pooled.dtype)], dim=1)
        posterior = self.recognition(joined)
        return posterior, gaussian_divergence(*posterior, *self.prior(pooled))

    def forward(self, source: Mapping[str, Tensor], target: Tensor) -> Output:
        hidden, present = self.encode_present(source)
        x = self.told(self.embed(self.target_embedding, target), source)
        divergence = None
        if self.latent:
            if self.training:
                (mean, log_variance), divergence = self.infer(hidden, present, target)
                latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            else:
                latent, _ = self.prior(mean_of(hidden, present))
            x = x + self.embed_latent(latent)[:, None, :]
        states = self.decode(hidden, padding_mask(present), x)
        return Output(self.logits(states), divergence, states)

    def posterior(self, source: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        (mean, _), divergence = self.infer(*self.encode_present(source), target)
        return mean, divergence

    def encode(self, source: Mapping[str, Tensor]) -> Tensors:
        hidden, present = self.encode_present(source)
        memory = self.memory(hidden, padding_mask(present))
        if self.latent:
            mean, log_variance = self.prior(mean_of(hidden, present))
            memory |= {PRIOR_MEAN: mean, PRIOR_DEVIATION: torch.exp(0.5 * log_variance)}
        return memory

    def step(
        self, tokens: Tensor, position: Tensor, seen: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        x = self.told(self.embed_step(tokens, position), memory)
        if self.latent:
            x = x + self.embed_latent(memory[LATENT])[:, None, :]
        return self.decode_step(x, seen, memory, cache)

    def example_source(self, batch: int, length: int) -> Tensors:
        source: Tensors = {}
        if "text" in self.modalities:
            source["text"] = torch.full((batch, length), 4, dtype=torch.long)
        for name, reader in self.readers.items():
            count = cast(SourceEmbedding, reader).example_length(length, self.sizes)
            source[name] = torch.ones(batch, count, self.sizes[name])
            source[f"{name}_length"] = torch.full((batch,), count)
        if self.sizes["tasks"] > 1:
            source["task"] = torch.zeros(batch, dtype=torch.long)
        return source

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        axes = {
            name: {1: cast(SourceEmbedding, reader).axis} for name, reader in self.readers.items()
        }
        return {**super().dynamic_axes(), **axes}
