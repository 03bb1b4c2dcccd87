"""Base class of modality embeddings: they map source vectors to network vectors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.modalities.sources import Sizes


class SourceEmbedding(nn.Module, ABC):
    """Base of the embeddings of all modalities except text, whose pieces have a table.

    Constructed with `(sizes, width, longest)`: what the network is made for, its width, and the
    maximum number of source positions.
    """

    axis: ClassVar[str]
    """Name of the axis of source positions in a graph."""

    def __init__(self, sizes: Sizes, width: int, longest: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, N, features) float32, zeros beyond each row's length (B,), to vectors (B, S,
        width) and a mask (B, S) of those that are present."""

    @staticmethod
    def example_length(length: int, sizes: Sizes) -> int:
        """Positions of an example source of about `length`: no more than the modality allows."""
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
