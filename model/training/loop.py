"""Training of any `EncoderDecoder`: one loop, resumable at any step, deterministic by seed.

Everything that the next step depends on is in the checkpoint or is a pure function of the seed and
the step number: the batches, the dropout, the learning rate. So a run that was killed and resumed
ends with the same curve and the same bytes as one that was not. The loop does not depend on where
rows come from, on text, or on decoding: the caller passes the validation score as a function.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.batching import sorted_batches
from model.configuration import Precision, TrainingConfig
from model.contract import EncoderDecoder
from model.names import WISH
from model.parallel.shares import own_share
from model.parallel.team import Team
from model.saved import tensors as checkpoint
from model.training.gradients import Lanes, clip, norm_of
from model.training.loader import Ahead, Step, steps_of
from model.training.optimizer import optimizers
from model.training.rows import TrainingRows
from model.training.schedule import Plateau, learning_rate
from model.vocabulary import BOS, PAD


@dataclass
class TrainingState:
    """What a resumed run must know besides weights and optimizer. JSON-serialisable."""

    step: int = 0
    loss_sum: float = 0.0
    tokens: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    waited: int = 0
    snapshots: dict[str, float] = field(default_factory=dict)
    plateau: Plateau = field(default_factory=Plateau)
    stopped: bool = False

    @classmethod
    def of(cls, state: dict[str, Any]) -> TrainingState:
        return cls(**{**state, "plateau": Plateau(**state["plateau"])})


def seed_of(seed: int, step: int, part: int) -> int:
    """What a part's dropout and other draws start from, whichever process computes it."""
    return int(np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0])


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What `auto` means on a device."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capability = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if capability.get("avx512_bf16") or capability.get("amx_bf16") else "fp32"


def shift(target: Tensor) -> Tensor:
    """The decoder's input for teacher forcing: the target shifted by one position, BOS first."""
    first = target.new_full((len(target), 1), BOS)
    return torch.cat([first, target[:, :-1]], dim=1)


def token_loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy (natural log), label-smoothed, summed over each row's target tokens: (batch,).

    Szegedy et al., 2016, section 7, as PyTorch defines `label_smoothing`.
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(),
        target.flatten(),
        ignore_index=PAD,
        label_smoothing=smoothing,
        reduction="none",
    )
    return losses.view(target.shape).sum(dim=1)


def divergence_loss(divergence: Tensor, free_bits: float) -> Tensor:
    """The loss of the latent variable for a row: the sum of the dimensions' mean divergences over
    the batch, each at least `free_bits` nats (Kingma et al., 2016, appendix C.8).

    `divergence` (batch, latent) in nats.
    """
    return divergence.float().mean(dim=0).clamp(min=free_bits).sum()


def annealed(weight: float, step: int, steps: int) -> float:
    """The divergence's weight at a step: linear from 0 (Bowman et al., 2016, section 3.1)."""
    return weight * min(1.0, step / steps) if steps else weight


def autocast(
    precision: Literal["fp32", "bf16"], device: torch.device
) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@torch.no_grad()
def validation_loss(
    model: EncoderDecoder,
    rows: TrainingRows,
    batch_tokens: int,
    device: torch.device,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> float:
    """Mean negative log-likelihood (nats) per target token, EOS counted, without smoothing."""
    model.eval()
    total = 0.0
    with autocast(precision, device):
        for batch in sorted_batches(rows.lengths, 2 * batch_tokens):
            source, target = to_device(rows.batch(batch), device)
            total += float(token_loss(model(source, shift(target)).logits, target, 0.0).sum())
    return total / max(1, int(rows.target.lengths.sum()))


WEIGHTS = "weights"
"""How the names of weights begin in a checkpoint."""
INFORMATIVE = 0.05
"""Nats that a latent dimension must carry to count. The variance of its posterior's mean, which is
often counted instead (active units), misleads: 16 of 16 dimensions vary where all of them together
carry 0.16 nats."""


@torch.no_grad()
def latent_statistics(
    model: EncoderDecoder, rows: TrainingRows, batch_tokens: int, device: torch.device
) -> dict[str, float]:
    """Whether the posterior has collapsed: divergence in nats, in total and by dimension, and how
    many dimensions carry more than `INFORMATIVE`."""
    model.eval()
    divergences = []
    for batch in sorted_batches(rows.lengths, 2 * batch_tokens):
        source, target = to_device(rows.batch(batch), device)
        _, divergence = model.posterior(source, shift(target))
        divergences.append(divergence.cpu())
    dimensions = torch.cat(divergences).double().mean(dim=0)
    return {
        "informative_dimensions": float((dimensions > INFORMATIVE).sum()),
        "divergence": float(dimensions.sum()),
        **{f"divergence.{number}": float(value) for number, value in enumerate(dimensions)},
    }


def to_device(
    batch: tuple[dict[str, Tensor], Tensor], device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    source, target = batch
    if device.type == "cpu":
        return batch
    moved = {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in source.items()
    }
    return moved, target.pin_memory().to(device, non_blocking=True)


class Trainer:
    """Owns the model's weights, the optimizer and the progress; `run` trains to the end."""

    def __init__(
        self,
        model: EncoderDecoder,
        config: TrainingConfig,
        train: TrainingRows,
        valid: TrainingRows,
        *,
        seed: int,
        device: torch.device,
        scratch: Path,
        score: Callable[[EncoderDecoder], dict[str, float]] | None = None,
        saved: Callable[[], None] = lambda: None,
        team: Team | None = None,
    ) -> None:
        """
        Args:
            score: computes validation scores of the current model, for the curve. The one named
                "valid_score" selects the best weights (higher is better); needed if
                `config.select` is "score".
            scratch: folder for checkpoints; a resumed run finds them there.
            saved: called when a checkpoint has been written.
            team: the processes that train together, this one among them; each calls this, with the
                same weights. They share `scratch`.
        """
        self.team = team or Team()
        self.team.layout.check(config.parts)
        self.model = self.whole_model = model.to(device)
        if self.team.size > 1:
            if self.team.leads:
                self.whole_model = copy.deepcopy(model)
            self.team.share(self.model)
        self.config, self.seed, self.device, self.scratch = config, seed, device, scratch
        self.train_rows, self.valid_rows, self.score = train, valid, score
        self.saved = saved
        self.precision = resolve_precision(config.precision, device)
        self.progress = TrainingState(plateau=Plateau(patience=2))
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.optimizers = optimizers(model, config, dtype)
        self.lanes = Lanes(model)

    @property
    def checkpoint_path(self) -> Path:
        return self.scratch / "checkpoint.safetensors"

    def run(
        self, on_step: Callable[[TrainingState], None] = lambda _: None
    ) -> list[dict[str, float]]:
        """Trains to the end, from the last checkpoint if there is one.

        At the end `whole_model`, of the process that leads, has the weights to keep: the best
        validated, or the mean of the best `average`. Returns the learning curve.
        """
        if self.checkpoint_path.exists():
            self.restore()
        drawn = self.train_rows.steps(self.config, self.seed, self.progress.step)
        with Ahead(steps_of(self.train_rows, drawn, self.numbers)) as steps:
            while self.progress.step < self.config.steps and not self.progress.stopped:
                self.update(steps.next())
                step = self.progress.step
                last = step == self.config.steps
                if step % self.config.validate_every == 0 or last:
                    self.validate()
                on_step(self.progress)
                if step % self.config.checkpoint_every == 0 or last or self.progress.stopped:
                    self.save()
        if self.team.leads:
            best = [self.scratch / name for name in self.kept()]
            checkpoint.load_weights(self.whole_model, checkpoint.average(best))
        self.whole_model.eval()
        return self.progress.curve

    def numbers(self, parts: int) -> list[int]:
        """The numbers of the parts that this process computes, of so many, in their order: lane
        after lane."""
        lanes = self.team.lanes(self.config.parts)
        return [number for lane in lanes for number in range(lane, parts, self.config.parts)]

    def update(self, drawn: Step) -> None:
        """One step: the gradients of its parts, then the optimizers."""
        progress, config = self.progress, self.config
        step, parts = progress.step + 1, drawn.parts
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        losses = np.zeros(len(parts))
        for number in self.numbers(len(parts)):
            last = number + config.parts >= len(parts)
            self.team.ends_lane(self.model, last)
            losses[number] = self.differentiate(drawn, step, number)
            if last:
                self.lanes.end()
        gradients = self.lanes.sum()
        progress.loss_sum += math.fsum(self.team.gathered(losses))
        progress.tokens += sum(self.train_rows.tokens(part) for part in parts)
        norm = norm_of(gradients, self.team)
        clip(gradients, norm, config.clip_norm)
        rate = self.rate(step)
        for optimizer in self.optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            optimizer.step()
        progress.step = step
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradient is {float(norm)} at step {step}: lower learning_rate, raise warmup, "
                "or set precision: fp32"
            )

    def differentiate(self, drawn: Step, step: int, number: int) -> float:
        """Adds the gradients of a part to those of the parameters; returns its loss, the sum over
        tokens."""
        config, part, batch = self.config, drawn.parts[number], drawn.batches[number]
        torch.manual_seed(seed_of(self.seed, step, number))
        if self.train_rows.told is not None:
            batch[0][WISH] = self.train_rows.told.draw(part.rows)
        source, target = to_device(batch, self.device)
        weights = torch.from_numpy(part.weights).to(self.device)
        with autocast(self.precision, self.device):
            output = self.model(source, shift(target))
        losses = token_loss(output.logits, target, config.label_smoothing)
        loss = losses @ weights
        if output.divergence is not None:
            weight = annealed(config.kl_weight, step, config.kl_anneal)
            cost = divergence_loss(output.divergence, config.free_bits)
            loss = loss + weight * cost * weights.sum()
        loss.backward()
        return float(losses.detach().sum()) if part.weighs else 0.0

    def rate(self, step: int) -> float:
        config = self.config
        base = learning_rate(
            config.schedule, config.learning_rate, step, config.warmup, config.steps
        )
        return base * (self.progress.plateau.scale if config.schedule == "plateau" else 1.0)

    def validate(self) -> None:
        """Adds a point to the curve, keeps the weights if they are among the best, may stop."""
        progress, config = self.progress, self.config
        weights = self.team.whole(self.model.named_parameters())
        point = self.team.tell(self.judge(weights) if self.team.leads else {})
        loss = point["valid_loss"]
        progress.curve.append(point)
        progress.loss_sum, progress.tokens = 0.0, 0
        progress.plateau.observe(loss)
        value = -loss if config.select == "loss" else point["valid_score"]
        if progress.best is None or value > progress.best:
            progress.best, progress.waited = value, 0
        else:
            progress.waited += 1
        progress.stopped = config.patience is not None and progress.waited >= config.patience
        name = f"snapshot-{progress.step:08d}.safetensors"
        progress.snapshots[name] = value
        if self.team.leads and name in self.kept():
            checkpoint.save(self.scratch / name, weights)

    def judge(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """A point of the curve: how good the weights are."""
        progress, config, model = self.progress, self.config, self.whole_model
        if model is not self.model:
            checkpoint.load_weights(model, weights)
        judged = self.valid_rows, config.batch_tokens, self.device
        point = {
            "step": progress.step,
            "train_loss": progress.loss_sum / max(1, progress.tokens),
            "valid_loss": validation_loss(model, *judged, self.precision),
            "learning_rate": self.rate(progress.step),
        }
        if self.score is not None:
            model.eval()
            point |= self.score(model)
        if model.latent:
            point |= latent_statistics(model, *judged)
        return point

    def kept(self) -> list[str]:
        """Names of the best `average` snapshots; of equal ones, the later."""
        ranked = sorted(self.progress.snapshots.items(), key=lambda item: (item[1], item[0]))
        return sorted(name for name, _ in ranked[-self.config.average :])

    def save(self) -> None:
        """Writes the checkpoint, then deletes the snapshots that no resumed run can need."""
        tensors = self.team.whole(self.state())
        if not self.team.leads:
            return
        checkpoint.save(self.checkpoint_path, tensors, asdict(self.progress))
        best = set(self.kept())
        for path in self.scratch.glob("snapshot-*.safetensors"):
            if path.name not in best:
                path.unlink()
        self.saved()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and what optimizers remember, by name."""
        for name, weight in self.model.named_parameters():
            yield f"{WEIGHTS}/{name}", weight
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                for name, tensor in values.items():
                    yield f"optimizer-{number}/{index}/{name}", tensor

    def restore(self) -> None:
        tensors, state = checkpoint.load(self.checkpoint_path)
        self.progress = TrainingState.of(state)
        named = (name.partition("/") for name in tensors if name.startswith(f"{WEIGHTS}/"))
        weights = {name: tensors[f"{WEIGHTS}/{name}"] for _, _, name in named}
        checkpoint.load_weights(self.model, weights)
        for number, optimizer in enumerate(self.optimizers):
            known = optimizer.state_dict()
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            for name, tensor in tensors.items():
                beginning, _, rest = name.partition("/")
                if beginning == f"optimizer-{number}":
                    index, _, key = rest.partition("/")
                    share = own_share(tensor, parameters[int(index)]) if tensor.dim() else tensor
                    known["state"].setdefault(int(index), {})[key] = share
            optimizer.load_state_dict(known)
