"""The optimizers: AdamW for all weights, or Muon for the matrices of linear layers.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) steps along the momentum's
nearest orthogonal matrix, so that all directions of a matrix learn at the same rate, not only those
with large gradients. Steps are scaled to the root mean square of AdamW's, so that one learning rate
and weight decay serve both (Liu et al., 2025, arXiv:2502.16982, section 2.2). PyTorch's own
`torch.optim.Muon` is the reference; it always computes in bf16, which many CPUs emulate, and matrix
by matrix, where here all matrices of a shape are one product.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.configuration import TrainingConfig
from model.parallel.shares import own_share, whole

QUINTIC = 3.4445, -4.7750, 2.0315
"""Jordan's coefficients: fast near zero, and singular values end between 0.7 and 1.2."""
ITERATIONS = 5
MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of AdamW's steps, before the learning rate."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U·Vᵀ of each matrix (count, rows, columns) with singular value decomposition U·S·Vᵀ, by
    Newton–Schulz iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    linear, cubic, fifth = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=fifth), x, beta=linear
        )
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum and decoupled weight decay, for matrices alone."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        learning_rate: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            dtype: in which matrices are made orthogonal; bf16 is enough, where it is fast.
        """
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = matrix.grad.lerp(state["momentum"], MOMENTUM)
                of_shape.setdefault(matrix.shape, []).append((matrix, update))
            for shape, updates in of_shape.items():
                stacked = torch.stack([whole(update) for _, update in updates])
                steps = orthogonalised(stacked.to(self.dtype))
                size = -group["lr"] * RMS * math.sqrt(max(shape))
                for (matrix, _), step in zip(updates, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(own_share(step.to(matrix.dtype), matrix), alpha=size)


def optimizers(
    model: nn.Module, config: TrainingConfig, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimizers of all weights, each with some of them.

    Args:
        dtype: that of the products in training.
    """
    matrices: list[Tensor] = []
    if config.optimizer == "muon":
        # A table that embeds and predicts is no matrix of a linear layer.
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        matrices = [weight for weight in linear if id(weight) not in tables]
    own = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1]},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    if not matrices:
        return [adam]
    return [adam, Muon(matrices, config.learning_rate, config.weight_decay, dtype)]
