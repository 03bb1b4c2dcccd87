"""What is learnt from: rows, drawn for one step after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.batching import Ragged, step_batches, training_batches
from model.configuration import TrainingConfig
from model.modalities.sources import SourceRows
from model.training.telling import Told


class Part(NamedTuple):
    """A batch of a step."""

    rows: np.ndarray
    turns: np.ndarray
    """Which part of its picture or sound each row uses."""
    weights: np.ndarray
    """The weight of one token of each row in the loss; over a step, all of them add up to 1."""

    def of(self, chosen: np.ndarray) -> Part:
        """The chosen rows; for none, one that weighs nothing, because every process must have as
        many batches as the others."""
        if len(chosen):
            return Part(self.rows[chosen], self.turns[chosen], self.weights[chosen])
        return Part(self.rows[:1], self.turns[:1], np.zeros(1, dtype=self.weights.dtype))

    @property
    def weighs(self) -> bool:
        """Whether it is more than a place that had to be filled."""
        return bool(self.weights.any())


@dataclass(frozen=True)
class TrainingRows:
    """Sources and targets, row for row; targets end with EOS and have no BOS."""

    source: SourceRows
    target: Ragged
    tasks: Sequence[str] = ()
    """The task of each row; needed where `TrainingConfig.mix` names tasks."""
    times: np.ndarray | None = None
    """How often each row is drawn in an epoch; once if not given."""
    told: Told | None = None
    """What training tells the model of some targets, for wishes."""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def lengths(self) -> np.ndarray:
        """(rows, modalities + 1) positions, the target last."""
        return np.concatenate([self.source.lengths, self.target.lengths[:, None]], axis=1)

    def batch(
        self, rows: np.ndarray, turn: int | np.ndarray = 0
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Padded sources and the target (batch, target)."""
        source = self.source.collate(rows, turn)
        return {name: torch.from_numpy(array) for name, array in source.items()}, torch.from_numpy(
            self.target.padded(rows)
        )

    def tokens(self, part: Part) -> int:
        """Target tokens of a part."""
        return int(self.target.lengths_of(part.rows).sum()) if part.weighs else 0

    def steps(self, config: TrainingConfig, seed: int, skip: int = 0) -> Iterator[list[Part]]:
        """Yields steps without end, after skipping `skip` steps.

        A step draws rows of similar length, separately for every task of a mix, and cuts them into
        batches of the same modalities. A task weighs its share; within it all tokens weigh alike.
        How many processes compute the step changes nothing in it.
        """
        lengths, groups = self.lengths, self.groups(config.mix)
        shares = [config.mix[name] for name in sorted(config.mix)] or [1.0]
        streams = [
            training_batches(
                lengths,
                int(config.batch_tokens * share),
                seed + number,
                skip * config.accumulate,
                rows,
            )
            for number, (rows, share) in enumerate(zip(groups, shares, strict=True))
        ]
        while True:
            drawn, turns, weights = [], [], []
            for stream, share in zip(streams, shares, strict=True):
                batches = list(itertools.islice(stream, config.accumulate))
                rows = np.concatenate([rows for _, rows in batches])
                weight = share / (sum(shares) * lengths[rows, -1].sum())
                drawn.append(rows)
                turns += [np.full(len(rows), epoch) for epoch, rows in batches]
                weights.append(np.full(len(rows), weight, dtype=np.float32))
            whole = Part(np.concatenate(drawn), np.concatenate(turns), np.concatenate(weights))
            cuts = step_batches(lengths[whole.rows], config.batch_tokens, config.parts)
            yield [whole.of(cut) for cut in cuts]

    def groups(self, mix: Mapping[str, float]) -> list[np.ndarray]:
        """The rows of each task of a mix, in order of the tasks' names, each as often as it is
        drawn; without a mix, all rows."""
        rows = np.arange(len(self))
        if self.times is not None:
            rows = np.repeat(rows, self.times)
        if not mix:
            return [rows]
        check_tasks(mix, self.tasks)
        task = np.array(self.tasks)
        return [rows[task[rows] == name] for name in sorted(mix)]


def check_tasks(mix: Mapping[str, float], tasks: Iterable[str]) -> None:
    """Raises `ValueError` if a mix, unless it is empty, does not name exactly the tasks."""
    known = set(tasks)
    if mix and set(mix) != known:
        raise ValueError(
            f"mix: names {', '.join(sorted(mix))}; the training rows are of "
            f"{', '.join(sorted(known))}, each of which needs a share"
        )
