"""Schedules against their published formulas and PyTorch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from model.training.schedule import Plateau, learning_rate


def test_warm_up_is_linear_then_inverse_square_root() -> None:
    rates = [learning_rate("inverse-sqrt", 1.0, step, 100, 1000) for step in (1, 50, 100, 400)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5])


def test_cosine_equals_pytorch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert learning_rate("cosine", 0.3, step, 0, 50) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        reference.step()


def test_plateau_equals_pytorch() -> None:
    values = [3, 2, 2.5, 2.5, 2.5, 2.5, 1, 1.5, 1.5, 1.5, 1.5, 0.5]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.0
    )
    ours = Plateau(factor=0.5, patience=2)
    for value in values:
        ours.observe(value)
        reference.step(value)
        assert ours.scale == optimizer.param_groups[0]["lr"]
    assert ours.scale < 1 and math.isfinite(ours.best)
