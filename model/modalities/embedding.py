"""What the embedding of a modality is: vectors of a source to vectors of a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.modalities.sources import Sizes


class SourceEmbedding(nn.Module, ABC):
    """Base of the embeddings of all modalities but text, whose pieces have a table.

    Made with `(sizes, width, longest)`: what the network is made for, its width, and the most
    positions that a source takes in it.
    """

    axis: ClassVar[str]
    """What the positions of a source are called in a graph."""

    def __init__(self, sizes: Sizes, width: int, longest: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, features) float32, zeros beyond each row's length (B,), to vectors (B, S, width)
        and which of them there are (B, S)."""

    @staticmethod
    def example_length(length: int, sizes: Sizes) -> int:
        """Positions of a source that is to be about `length` long: no more than there can be."""
        return length


def present_upto(lengths: Tensor, size: int) -> Tensor:
    """(batch, size), true for positions below each row's length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def sinusoids(positions: int, width: int) -> Tensor:
    """Fixed position embeddings (positions, width): Vaswani et al., 2017, section 3.5."""
    rate = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    angle = torch.arange(positions).float()[:, None] * rate[None, :]
    table = torch.zeros(positions, width)
    table[:, 0::2] = torch.sin(angle)
    table[:, 1::2] = torch.cos(angle)[:, : width // 2]
    return table
