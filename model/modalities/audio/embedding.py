"""Log-mel frames of sounds as vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.modalities.embedding import SourceEmbedding, present_upto, sinusoids
from model.modalities.sources import Sizes


class FrameEmbedding(SourceEmbedding):
    """Log-mel frames to vectors, a quarter as many: two convolutions of stride 2; Whisper
    (Radford et al., 2022) has one. Positions beyond a row's end are zero before each of them, so
    padding changes nothing."""

    axis = "frames"
    positions: Tensor

    def __init__(self, sizes: Sizes, width: int, longest: int) -> None:
        super().__init__(sizes, width, longest)
        self.first = nn.Conv1d(sizes["audio"], width, kernel_size=3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sinusoids(longest, width), persistent=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T, features) and (B,) to vectors (B, ⌈⌈T/2⌉/2⌉, W) and a presence mask."""
        x = frames.transpose(1, 2)
        for convolution in (self.first, self.second):
            x = F.gelu(convolution(x))
            lengths = (lengths + 1) // 2
            present = present_upto(lengths, x.shape[2])
            x = x * present[:, None, :].to(x.dtype)
        index = torch.arange(x.shape[2], device=x.device)
        return self.norm(x.transpose(1, 2)) + self.positions[index], present
