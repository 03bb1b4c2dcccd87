"""The settings of all preprocessing of a model together: what trained is what serves.

What is done to raw content with them stands in `model.modalities.preparation`,
so that training, which reads features, does not depend on it.

A folder has `text/` always, and one for each other modality that it was made for.
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
    """The preprocessing of one model: of text, with the targets, and of what else it takes."""

    text: TextProcessor
    folders: Mapping[str, Path]
    """The folders of the modalities beside text."""

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """The processor of a model or of graphs."""
        media = {name: folder / name for name in MEDIA if (folder / name).exists()}
        return cls(TextProcessor.load(folder / "text"), media)

    @cached_property
    def settings(self) -> Mapping[str, MediaSettings]:
        """Of every modality beside text that there is."""
        return {name: load_settings(folder, name) for name, folder in self.folders.items()}

    @cached_property
    def target(self) -> TargetCodec:
        """What the decoder's tokens stand for."""
        return TextTarget(self.text)

    @property
    def sizes(self) -> dict[str, int]:
        """See `model.modalities.sources.Sizes`."""
        found = dict(self.text.sizes)
        for settings in self.settings.values():
            found |= settings.sizes
        return found

    def copy(self, folder: Path) -> None:
        """Puts everything into the folder of a model or of graphs."""
        shutil.copytree(self.text.folder, folder / "text")
        for name, source in self.folders.items():
            shutil.copytree(source, folder / name)

    def task_numbers(self, tasks: Sequence[str]) -> np.ndarray | None:
        """What a model takes as `task`; None where there is only one. Raises `ValueError`."""
        known = self.text.settings.tasks
        for task in set(tasks) - set(known):
            raise ValueError(f"unknown task {task!r}; the model knows {', '.join(known)}")
        if len(known) < 2:
            return None
        return np.array([known.index(task) for task in tasks], dtype=np.int64)
