"""Learning-rate schedules, as pure functions of the step where the schedule allows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.configuration import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int, warmup: int, total: int) -> float:
    """The rate at `step`, counted from 1.

    Linear warm-up to `peak` over `warmup` steps, then: `inverse-sqrt` falls as 1/√step (Vaswani
    et al., 2017, equation 3); `cosine` falls to 0 at `total` (Loshchilov and Hutter, 2017,
    equation 5, one cycle); `constant` and `plateau` stay at `peak` (`Plateau` cuts the latter).
    """
    if step < warmup:
        return peak * step / warmup
    if schedule == "inverse-sqrt":
        return peak * math.sqrt(max(warmup, 1) / step)
    if schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak


@dataclass
class Plateau:
    """Multiplies the rate by `factor` after `patience` validations without a better value.

    The behaviour of `torch.optim.lr_scheduler.ReduceLROnPlateau` with threshold 0, lower being
    better. The fields are the whole state, so that a checkpoint can hold it.
    """

    factor: float = 0.5
    patience: int = 3
    scale: float = 1.0
    best: float = math.inf
    waited: int = 0

    def observe(self, value: float) -> None:
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = self.scale * self.factor, 0
