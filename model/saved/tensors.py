"""Tensors and a JSON state in one safetensors file, replaced atomically. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.parallel.shares import own_share


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any] | None = None) -> None:
    """Writes atomically: a reader, or a resume after a kill, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"state": json.dumps(state, sort_keys=True)} if state is not None else None
    save_file(contiguous, temporary, metadata=metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the state (empty where none was saved)."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata.get("state", "{}"))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; tied ones once, under the first of their names."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The reverse of `weights`. Raises `ValueError` where names or shapes differ."""
    parameters = dict(model.named_parameters())
    missing, unknown = parameters.keys() - tensors.keys(), tensors.keys() - parameters.keys()
    if missing or unknown:
        raise ValueError(
            f"weights do not fit the model: missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(
                    f"weight {name} has shape {tuple(tensors[name].shape)}, "
                    f"the model wants {tuple(parameter.shape)}"
                )
            parameter.copy_(own_share(tensors[name], parameter))


def average(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of several checkpoints' tensors (Vaswani et al., 2017, section 6.1)."""
    total, _ = load(paths[0])
    total = {name: tensor.double() for name, tensor in total.items()}
    for path in paths[1:]:
        for name, tensor in load(path)[0].items():
            total[name] += tensor
    return {name: (tensor / len(paths)).float() for name, tensor in total.items()}
