"""A PyTorch model as a `Stepper`: what ONNX is compared with, and what validation decodes with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from exports.decoding import Source
from model.contract import EncoderDecoder, Tensors


@dataclass
class TorchState:
    memory: Tensors
    cache: Tensors


class TorchStepper:
    """Steps a model in evaluation mode on the device its parameters are on."""

    def __init__(self, model: EncoderDecoder) -> None:
        self.model = model
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def start(self, source: Source) -> TorchState:
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in source.items()}
        batch = len(next(iter(source.values())))
        return TorchState(self.model.encode(tensors), self.model.empty_cache(batch))

    @torch.inference_mode()
    def step(
        self, state: TorchState, tokens: np.ndarray, position: int
    ) -> tuple[np.ndarray, TorchState]:
        last = torch.from_numpy(tokens).to(self.device)
        at = torch.tensor(position, device=self.device)
        logits, cache = self.model.step(last, at, state.memory, state.cache)
        return logits.float().cpu().numpy(), TorchState(state.memory, cache)

    @torch.inference_mode()
    def select(self, state: TorchState, rows: np.ndarray) -> TorchState:
        index = torch.from_numpy(rows).to(self.device)
        return TorchState(
            {name: tensor.index_select(0, index) for name, tensor in state.memory.items()},
            {name: tensor.index_select(0, index) for name, tensor in state.cache.items()},
        )
