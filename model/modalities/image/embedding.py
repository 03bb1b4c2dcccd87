"""Patches of pictures as vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.modalities.embedding import SourceEmbedding, present_upto, sinusoids
from model.modalities.sources import Sizes


class PatchEmbedding(SourceEmbedding):
    """Picture patches to vectors (Dosovitskiy et al., 2021), positions by row and column."""

    axis = "patches"
    positions: Tensor

    def __init__(self, sizes: Sizes, width: int, longest: int) -> None:
        super().__init__(sizes, width, longest)
        features, columns = sizes["image"], sizes["image_columns"]
        self.project = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        index = torch.arange(columns * columns)
        across = sinusoids(columns, width // 2)
        down = sinusoids(columns, width - width // 2)
        table = torch.cat([down[index // columns], across[index % columns]], dim=1)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, patches: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, N, features) and (B,) to vectors (B, N, W) and their presence mask (B, N)."""
        index = torch.arange(patches.shape[1], device=patches.device)
        x = self.norm(self.project(patches)) + self.positions[index]
        return x, present_upto(lengths, patches.shape[1])

    @staticmethod
    def example_length(length: int, sizes: Sizes) -> int:
        return min(length, sizes["image_columns"] ** 2)
