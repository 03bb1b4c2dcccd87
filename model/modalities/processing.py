"""All preprocessing settings of a model: training and serving use the same.

`model.modalities.preparation` applies them to raw content. It is separate, so that training, which
reads features, does not depend on it.

A folder always has `text/`, and one folder for each other modality that it was made for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from model.modalities.known import MEDIA
from model.modalities.media import MediaSettings
from model.modalities.target import TargetCodec, TextTarget
from model.modalities.text import TextProcessor


def load_settings(folder: Path, name: str) -> MediaSettings:
    """The settings of a modality in a folder."""
    written = (folder / "settings.json").read_text(encoding="utf-8")
    return MEDIA[name].settings.model_validate(json.loads(written))


@dataclass(frozen=True)
class Processor:
    """The preprocessing of one model: of text and targets, and of its other modalities."""

    text: TextProcessor
    folders: Mapping[str, Path]
    """The folders of the modalities besides text."""

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """The processor of a model or of graphs."""
        media = {name: folder / name for name in MEDIA if (folder / name).exists()}
        return cls(TextProcessor.load(folder / "text"), media)

    @cached_property
    def settings(self) -> Mapping[str, MediaSettings]:
        """Settings of every modality besides text that is present."""
        return {name: load_settings(folder, name) for name, folder in self.folders.items()}

    @cached_property
    def target(self) -> TargetCodec:
        """How the decoder's tokens map to targets."""
        return TextTarget(self.text)

    @property
    def sizes(self) -> dict[str, int]:
        """See `model.modalities.sources.Sizes`."""
        sizes = dict(self.text.sizes)
        for settings in self.settings.values():
            sizes |= settings.sizes
        return sizes

    def copy(self, folder: Path) -> None:
        """Puts everything into the folder of a model or of graphs."""
        shutil.copytree(self.text.folder, folder / "text")
        for name, source in self.folders.items():
            shutil.copytree(source, folder / name)

    def task_numbers(self, tasks: Sequence[str]) -> np.ndarray | None:
        """The model's input `task`; None if there is only one task. Raises `ValueError`."""
        known = self.text.settings.tasks
        for task in set(tasks) - set(known):
            raise ValueError(f"unknown task {task!r}; the model knows {', '.join(known)}")
        if len(known) < 2:
            return None
        return np.array([known.index(task) for task in tasks], dtype=np.int64)
