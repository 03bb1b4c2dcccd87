"""A PyTorch model as a `Stepper`: what ONNX is compared with, and what validation decodes with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from exports.decoding import Source
from model.contract import EncoderDecoder, Tensors
from model.names import LATENT, PRIOR_DEVIATION, PRIOR_MEAN


@dataclass
class TorchState:
    memory: Tensors
    cache: Tensors


class TorchStepper:
    """Steps a model in evaluation mode on the device its parameters are on."""

    def __init__(self, model: EncoderDecoder) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.latent = model.latent

    @torch.inference_mode()
    def start(self, source: Source, noise: np.ndarray | None = None) -> TorchState:
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in source.items()}
        batch = len(next(iter(source.values())))
        memory = self.model.encode(tensors)
        if self.latent:
            latent, deviation = memory.pop(PRIOR_MEAN), memory.pop(PRIOR_DEVIATION)
            if noise is not None:
                latent = latent + deviation * torch.from_numpy(noise).float().to(self.device)
            memory[LATENT] = latent
        return TorchState(memory, self.model.empty_cache(batch))

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
