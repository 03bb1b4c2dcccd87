"""Muon: PyTorch's own, and the singular value decomposition that it approximates."""

from __future__ import annotations

import pytest
import torch

from model.configuration import LstmConfig, ModelConfig, TrainingConfig, TransformerConfig
from model.modalities.sources import text_sizes
from model.saved.folder import build
from model.training.optimizer import Muon, optimizers, orthogonalised

SHAPES = [(24, 24), (96, 24), (24, 96), (24, 24)]


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(1)
    for shape in {*SHAPES}:
        matrices = torch.randn(5, *shape) * torch.tensor([1e-3, 1, 1e3, 1, 1])[:, None, None]
        found = orthogonalised(matrices)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.3 and values.max() < 1.25
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        exact = u @ v
        alike = (found * exact).sum((1, 2)) / (found.norm(dim=(1, 2)) * exact.norm(dim=(1, 2)))
        assert alike.min() > 0.97
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_a_matrix_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(2)
    matrices = torch.randn(4, 16, 8)
    alone = torch.cat([orthogonalised(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalised(matrices), alone, rtol=1e-4, atol=1e-5)


def test_steps_are_those_of_pytorch() -> None:
    """`torch.optim.Muon` with AdamW's root mean square; it rounds to bf16."""
    torch.manual_seed(3)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    start = [parameter.detach().clone() for parameter in ours]
    mine = Muon(ours, 0.02, 0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        mine.step()
        reference.step()
    for own, other, before in zip(ours, theirs, start, strict=True):
        moved, wanted = (own - before).flatten(), (other - before).flatten()
        assert float((moved - wanted).norm() / wanted.norm()) < 0.02


def test_bf16_is_near_enough() -> None:
    torch.manual_seed(6)
    matrices = torch.randn(3, 32, 64)
    exact, low = orthogonalised(matrices), orthogonalised(matrices.bfloat16()).float()
    assert not torch.equal(exact, low)
    assert float((exact - low).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize(
    "config", [TransformerConfig(layers=1, width=16, heads=2), LstmConfig(width=16)]
)
def test_every_weight_has_one_optimizer_and_tables_are_no_matrices(config: ModelConfig) -> None:
    model = build(config, text_sizes(14, 14, shared=True))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for kind, count in (("adamw", 1), ("muon", 2)):
        made = optimizers(model, TrainingConfig.model_validate({"optimizer": kind}))
        assert len(made) == count
        held = [
            [names[id(parameter)] for group in each.param_groups for parameter in group["params"]]
            for each in made
        ]
        assert sorted(name for each in held for name in each) == sorted(names.values())
    assert held[1] and all(name.endswith(".weight") for name in held[1])
    assert not [name for name in held[1] if "embedding" in name or "norm" in name]
