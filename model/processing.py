"""All preprocessing of a model together: what trained is what serves.

A folder has `text/` always, and `image/` and `audio/` for the modalities it was made for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from model.batching import Ragged
from model.media import AudioSettings, ImageSettings, MediaSettings
from model.sources import Frames, SourceRows
from model.text import TextProcessor

SETTINGS: dict[str, type[MediaSettings]] = {"image": ImageSettings, "audio": AudioSettings}


def load_settings(folder: Path, name: str) -> Any:
    """The `ImageSettings` or `AudioSettings` in a folder."""
    written = (folder / "settings.json").read_text(encoding="utf-8")
    return SETTINGS[name].model_validate(json.loads(written))


@dataclass(frozen=True)
class Processor:
    """Text, pictures and sounds to sources, and target ids to text."""

    text: TextProcessor
    folders: Mapping[str, Path]
    """The folders of the modalities beside text."""

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """The processor of a model or of graphs."""
        media = {name: folder / name for name in SETTINGS if (folder / name).exists()}
        return cls(TextProcessor.load(folder / "text"), media)

    @cached_property
    def image(self) -> ImageSettings | None:
        return self._settings("image")

    @cached_property
    def audio(self) -> AudioSettings | None:
        return self._settings("audio")

    def _settings(self, name: str) -> Any:
        return load_settings(self.folders[name], name) if name in self.folders else None

    @property
    def sizes(self) -> dict[str, int]:
        """See `model.sources.Sizes`."""
        return {
            **self.text.sizes,
            "image": self.image.features if self.image else 0,
            "image_columns": self.image.columns if self.image else 0,
            "audio": self.audio.features if self.audio else 0,
        }

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

    def sources(self, records: Sequence[Mapping[str, Any]]) -> SourceRows:
        """Raw records, each with `task` and any of `text` (a string), `image` and `audio` (the
        bytes of a file), as sources.

        Raises:
            model.media.MediaError: a picture or a sound cannot be used.
            ValueError: a record has a modality or a task that the model was not made for.
        """
        for record in records:
            for name, there in (
                ("text", self.text.settings.sources),
                ("image", self.image),
                ("audio", self.audio),
            ):
                if record.get(name) is not None and not there:
                    raise ValueError(f"the model was made without {name}")
        text = None
        if self.text.settings.sources:
            encoded = self.text.encode([record.get("text") or "" for record in records])
            empty: list[int] = []
            text = Ragged.of(
                [
                    encoded.row(row) if record.get("text") else empty
                    for row, record in enumerate(records)
                ]
            )
        return SourceRows(
            text,
            self._frames("image", records),
            self._frames("audio", records),
            self.task_numbers([str(record["task"]) for record in records]),
        )

    def _frames(self, name: str, records: Sequence[Mapping[str, Any]]) -> Frames | None:
        settings = self._settings(name)
        if settings is None:
            return None
        held = [record.get(name) for record in records]
        parts = self._prepare(name, [data for data in held if data is not None])
        counts = np.array([data is not None for data in held], dtype=np.int64)
        empty = np.zeros((0, settings.features), dtype=np.float32)
        offsets = np.cumsum([0, *(len(part) for part in parts)])
        values = np.concatenate([empty, *parts])
        return Frames(values, offsets, np.cumsum(counts) - counts, counts, settings)

    def _prepare(self, name: str, files: list[bytes]) -> list[np.ndarray]:
        if name == "image":
            from model.image import prepare

            assert self.image is not None
            return [prepare(data, self.image) for data in files]
        from model.audio import decode, load_filters, log_mel

        assert self.audio is not None
        clips = [decode(data, self.audio) for data in files]
        return log_mel(clips, self.audio, load_filters(self.folders["audio"]))
