"""Small jobs for tests of training, the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.batching import Ragged
from model.configuration import (
    GeminiConfig,
    LstmConfig,
    ModelConfig,
    TrainingConfig,
    TransformerConfig,
)
from model.modalities.image.settings import ImageSettings
from model.modalities.known import MEDIA
from model.modalities.sources import Frames, SourceRows, text_sizes
from model.parallel.team import Team
from model.saved.folder import build
from model.training.loop import Trainer
from model.training.rows import TrainingRows
from model.vocabulary import EOS

VOCABULARY = 83
"""Not a multiple of a number of processes."""
IMAGES = ImageSettings(
    resize=8, crop=8, patch=4, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.1)
)  # fmt: skip
MODELS: dict[str, ModelConfig] = {
    "text": TransformerConfig(layers=2, width=32, heads=4, dropout=0.2),
    "several": GeminiConfig(layers=1, width=32, heads=2, dropout=0.2, latent=4),
    "lstm": LstmConfig(width=32, dropout=0.2),
}


def rows(job: str, count: int, seed: int) -> TrainingRows:
    random = np.random.default_rng(seed)
    lines = [
        [*random.integers(4, VOCABULARY, random.integers(2, 9)).tolist(), EOS] for _ in range(count)
    ]
    target = Ragged.of(lines)
    if job != "several":
        return TrainingRows(SourceRows(target), target)
    counts = random.integers(0, 2, count)
    text = Ragged.of([line if n % 3 or not counts[n] else [] for n, line in enumerate(lines)])
    kind = np.dtype(MEDIA["image"].stored)
    values = random.integers(0, 200, (int(counts.sum()) * 4, IMAGES.features)).astype(kind)
    offsets = np.arange(0, len(values) + 1, 4)
    frames = Frames(values, offsets, counts.cumsum() - counts, counts, IMAGES, MEDIA["image"])
    return TrainingRows(SourceRows(text, {"image": frames}), target)


def trainer(job: str, scratch: Path, team: Team | None = None, **options: Any) -> Trainer:
    sizes = text_sizes(VOCABULARY, VOCABULARY, shared=True)
    if job == "several":
        sizes |= IMAGES.sizes
    torch.manual_seed(4)
    model = build(MODELS[job], sizes)
    defaults: dict[str, Any] = {
        "steps": 8, "batch_tokens": 128, "validate_every": 4, "checkpoint_every": 4, "warmup": 3,
        "learning_rate": 3e-3, "select": "loss", "average": 2, "precision": "fp32",
    }  # fmt: skip
    config = TrainingConfig.model_validate(defaults | options)
    return Trainer(
        model, config, rows(job, 90, 1), rows(job, 10, 2), seed=9, device=torch.device("cpu"),
        scratch=scratch, team=team,
    )  # fmt: skip
