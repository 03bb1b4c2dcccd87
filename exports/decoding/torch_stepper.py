"""A PyTorch model as a `Stepper`: the reference for ONNX, and the decoder of validation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exports.decoding.hypotheses import continued, nothing_seen, with_step
from exports.decoding.stepper import STRIDE, Best, Source, wished
from model.contract import HISTORY, EncoderDecoder, Tensors
from model.names import ATTENTION, LATENT, MET, PRIOR_DEVIATION, PRIOR_MEAN, WISH


@dataclass
class TorchState:
    memory: Tensors
    cache: Tensors
    seen: np.ndarray
    told: Tensors = field(default_factory=dict)
    """What the last step returned besides logits and cache."""


class TorchStepper:
    """Steps a model in evaluation mode on the device its parameters are on."""

    def __init__(self, model: EncoderDecoder) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.latent, self.attentive = model.latent, model.attentive
        self.wishes, self.judging = model.wishes, model.future is not None
        self.stride = 1 if self.device.type == "cpu" else STRIDE
        axes = model.dynamic_axes()
        self.histories = {name for name in axes if HISTORY in axes[name].values()}

    @torch.inference_mode()
    def start(self, source: Source, noise: np.ndarray | None = None) -> TorchState:
        batch = len(next(iter(source.values())))
        wish = wished(source, batch, self.wishes)
        tensors = {name: self._tensor(array) for name, array in source.items() if name != WISH}
        memory = self.model.encode(tensors)
        if self.latent:
            latent, deviation = memory.pop(PRIOR_MEAN), memory.pop(PRIOR_DEVIATION)
            if noise is not None:
                latent = latent + deviation * self._tensor(noise).float()
            memory[LATENT] = latent
        if self.wishes:
            memory[WISH] = self._tensor(wish)
        return TorchState(memory, self.model.empty_cache(batch), nothing_seen(batch))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _logits(
        self, state: TorchState, tokens: Tensor, position: int
    ) -> tuple[Tensor, TorchState]:
        seen = with_step(state.seen)
        at = torch.tensor(position, device=self.device)
        logits, cache = self.model.step(tokens, at, self._tensor(seen), state.memory, state.cache)
        told = {name: cache.pop(name) for name in (ATTENTION, MET) if name in cache}
        return logits.float(), TorchState(state.memory, cache, seen, told)

    @torch.inference_mode()
    def step(
        self, state: TorchState, tokens: np.ndarray, position: int
    ) -> tuple[np.ndarray, TorchState]:
        logits, state = self._logits(state, self._tensor(tokens), position)
        return logits.cpu().numpy(), state

    @torch.inference_mode()
    def best(
        self, state: TorchState, tokens: np.ndarray, position: int, count: int
    ) -> tuple[Best, TorchState]:
        logits, state = self._logits(state, self._tensor(tokens), position)
        count = min(count, logits.shape[2])
        gains, best = torch.log_softmax(logits, dim=2).topk(count, dim=2)
        return Best(best.cpu().numpy(), gains.double().cpu().numpy()), state

    @torch.inference_mode()
    def advance(
        self, state: TorchState, tokens: np.ndarray, position: int, steps: int
    ) -> tuple[np.ndarray, np.ndarray, TorchState]:
        last, chosen, gains = self._tensor(tokens), [], []
        for step in range(steps):
            logits, state = self._logits(state, last[:, None], position + step)
            gained, best = torch.log_softmax(logits[:, 0], dim=1).max(dim=1)
            last = best
            chosen.append(best)
            gains.append(gained)
        decoded, earned = torch.stack(chosen, dim=1), torch.stack(gains, dim=1)
        return decoded.cpu().numpy(), earned.double().cpu().numpy(), state

    def told(self, state: TorchState, name: str) -> np.ndarray:
        told: np.ndarray = state.told[name].float().cpu().numpy()
        return told

    @torch.inference_mode()
    def keep(self, state: TorchState, rows: np.ndarray) -> TorchState:
        index = self._tensor(rows)
        return TorchState(
            {name: tensor.index_select(0, index) for name, tensor in state.memory.items()},
            {name: tensor.index_select(0, index) for name, tensor in state.cache.items()},
            state.seen[rows],
        )

    @torch.inference_mode()
    def reorder(self, state: TorchState, parents: np.ndarray) -> TorchState:
        rows, index = self._tensor(np.arange(len(parents))[:, None]), self._tensor(parents)
        cache = {
            name: tensor if name in self.histories else tensor[rows, index]
            for name, tensor in state.cache.items()
        }
        return TorchState(state.memory, cache, continued(state.seen, parents))
