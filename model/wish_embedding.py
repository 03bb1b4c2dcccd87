"""Wishes that a model learns with everything else: a vector for each value, added to the decoder's
input.

That is an additive intervention (Schioppa et al., 2021, "Controlling machine translation for
multiple attributes with additive interventions"), where it costs least: the memory of the source is
the same with every wish. The model is told what some of its training targets are; rows without a
value are told as often that they have none. So the rows that are told nothing are like all rows,
and so are outputs without a wish.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.wishes import Wishes


class WishEmbedding(nn.Module):
    """See the module. Shapes: B rows, A values of all wishes, G wishes, W width."""

    def __init__(self, wishes: Wishes, width: int) -> None:
        super().__init__()
        self.wishes = wishes
        # Starts at zero, so that training begins with what the model is without wishes.
        self.weight = nn.Parameter(torch.zeros(wishes.count + len(wishes.values), width))

    def forward(self, wish: Tensor) -> Tensor:
        """(B, 1, W), exactly zero where there is no wish.

        Args:
            wish: (B, A), see `model.wishes`; in training (B, A + G), the last for targets that have
                no value of a wish.
        """
        # Not a product of matrices, which 8-bit graphs would make coarse.
        weight = self.weight[: wish.shape[1]]
        return torch.sum(wish[:, :, None] * weight, dim=1, keepdim=True)
