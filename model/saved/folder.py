"""A model as a folder: weights, configuration and preprocessing. Complete, and without pickle."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from model.configuration import ModelConfig
from model.contract import EncoderDecoder
from model.modalities.processing import Processor
from model.modalities.sources import Sizes
from model.saved import tensors as checkpoint

WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.json"


def resolve(target: str) -> Any:
    """The class at "module:Class"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def build(config: ModelConfig, sizes: Sizes) -> EncoderDecoder:
    """A network with fresh weights, from PyTorch's random state as it stands."""
    network: EncoderDecoder = resolve(config.network)(config, sizes)
    return network


def save_model(
    folder: Path, config: ModelConfig, model: EncoderDecoder, processor: Processor
) -> None:
    checkpoint.save(folder / WEIGHTS, checkpoint.weights(model))
    kind = type(config)
    description = {
        "config": f"{kind.__module__}:{kind.__name__}",
        "options": config.model_dump(mode="json"),
        "sizes": processor.sizes,
    }
    written = json.dumps(description, indent=2, sort_keys=True) + "\n"
    (folder / DESCRIPTION).write_text(written, encoding="utf-8")
    processor.copy(folder)


def load_model(folder: Path) -> tuple[EncoderDecoder, ModelConfig, Processor]:
    """The model in evaluation mode, on the CPU, its configuration and its preprocessing."""
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    config: ModelConfig = resolve(description["config"]).model_validate(description["options"])
    model = build(config, description["sizes"])
    tensors, _ = checkpoint.load(folder / WEIGHTS)
    checkpoint.load_weights(model, tensors)
    return model.eval(), config, Processor.load(folder)
