"""Gradients of a step: added in an order that does not depend on how many processes share it.

A step has a number of lanes, a power of 2. A lane's parts are added one after another, as PyTorch
adds gradients; the sums of the lanes are added in pairs, the sums of pairs in pairs again, and so
on. Of 2^n processes each has every 2^n-th lane: first they add a lane of each to the lanes of the
others, in pairs of processes, then these sums come one after another. So with 1, 2 or more
processes exactly the same numbers are added in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.parallel.shares import local
from model.parallel.team import Team


class Lanes:
    """Adds the gradients of lanes, which come one after another."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self._sums: list[tuple[int, list[Tensor]]] = []
        """Sums that wait for their neighbour, with the number of lanes in each."""

    def end(self) -> None:
        """A lane has ended: its gradients are taken from the parameters."""
        gradients = []
        for parameter in self.parameters:
            # A modality that no row of the lane has; its weights still decay, as all others do.
            gradient = parameter.grad
            gradients.append(torch.zeros_like(parameter) if gradient is None else gradient.detach())
            parameter.grad = None
        lanes = 1
        while self._sums and self._sums[-1][0] == lanes:
            before = self._sums.pop()[1]
            for summed, gradient in zip(before, gradients, strict=True):
                local(summed).add_(local(gradient))
            gradients, lanes = before, 2 * lanes
        self._sums.append((lanes, gradients))

    def sum(self) -> list[Tensor]:
        """Gives the parameters the sum of all lanes as their gradients, and returns it."""
        ((_, gradients),) = self._sums  # there are 2^n lanes
        self._sums = []
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return gradients


def norm_of(gradients: Sequence[Tensor], team: Team | None = None) -> Tensor:
    """The norm of all gradients together, in fp32: (). Added in fp64, so that the order does not
    show, but for about one time in 2^28."""
    norms = [torch.linalg.vector_norm(local(each), dtype=torch.float64) for each in gradients]
    squares = torch.stack(norms).square().sum()
    return (squares if team is None else team.added(squares)).sqrt().float()


def clip(gradients: Sequence[Tensor], norm: Tensor, largest: float) -> None:
    """Scales gradients down to a norm, as `torch.nn.utils.clip_grad_norm_` does (Pascanu et al.,
    2013); 0 leaves them as they are."""
    factor = torch.clamp((largest or math.inf) / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor)
