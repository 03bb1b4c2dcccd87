"""Time steps of a series as vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.modalities.embedding import SourceEmbedding, present_upto, sinusoids
from model.modalities.sources import Sizes


class StepEmbedding(SourceEmbedding):
    """Maps readings, and flags for those present, to vectors; positions by time."""

    axis = "steps"
    positions: Tensor

    def __init__(self, sizes: Sizes, width: int, longest: int) -> None:
        super().__init__(sizes, width, longest)
        self.project = nn.Linear(sizes["series"], width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sinusoids(longest, width), persistent=False)

    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(values.shape[1], device=values.device)
        x = self.norm(self.project(values)) + self.positions[index]
        return x, present_upto(lengths, values.shape[1])
