"""Sources of every modality as arrays, row for row, padded together on demand.

What a batch of them looks like stands in `model.contract`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model.batching import Ragged
from model.modalities.media import MediaSettings

Sizes = Mapping[str, int]
"""What a model is made for: `source` and `target` vocabularies, `shared` (1 where they are one),
`text` (1 where there is text as source), `tasks`, `image` (numbers in a patch, 0 for no pictures)
with `image_columns` (patches in a row), `audio` (mel bins, 0 for no sounds)."""


def text_sizes(source: int, target: int, shared: bool = False) -> dict[str, int]:
    """`Sizes` of text alone, of one task."""
    none = {"tasks": 1, "image": 0, "image_columns": 0, "audio": 0}
    return {"source": source, "target": target, "shared": int(shared), "text": 1, **none}


MODALITIES = ("text", "image", "audio")
AUDIO_STRIDE = 4
"""Frames to one position of an encoder, for counting how much a batch holds."""


class Frames:
    """Sequences of vectors: patches of pictures or frames of sounds, normalised on demand.

    A row may have several parts (variants for augmentation, pieces of a long recording); one of
    them is used at a time.
    """

    def __init__(
        self,
        values: np.ndarray,
        offsets: np.ndarray,
        first: np.ndarray,
        counts: np.ndarray,
        settings: MediaSettings,
    ) -> None:
        """
        Args:
            values: (frames, features) of all parts, one after the other, as they are stored.
            offsets: (parts + 1,) where each part begins.
            first: (rows,) number of the first part of each row.
            counts: (rows,) parts of each row; 0 where it lacks the modality.
        """
        self.values, self.offsets, self.first, self.counts = values, offsets, first, counts
        self.settings = settings
        repeat = values.shape[1] // max(1, len(settings.mean))
        # Channels stand next to one another within a patch.
        self.mean = np.tile(np.array(settings.mean, dtype=np.float32), repeat)
        self.scale = 1 / np.tile(np.array(settings.deviation, dtype=np.float32), repeat)

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: np.ndarray) -> Frames:
        """The given rows alone; the values stay shared."""
        first, counts = self.first[rows], self.counts[rows]
        return Frames(self.values, self.offsets, first, counts, self.settings)

    def part(self, rows: np.ndarray, turn: int | np.ndarray = 0) -> np.ndarray:
        """The part of each row in a turn, its own or the same for all, -1 where there is none;
        turns go round."""
        counts = self.counts[rows]
        return np.where(counts > 0, self.first[rows] + turn % np.maximum(counts, 1), -1)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each row's longest part."""
        sizes = np.append(np.diff(self.offsets), 0)
        longest = np.zeros(len(self.first), dtype=np.int64)
        for turn in range(int(self.counts.max(initial=0))):
            # Rows with fewer parts see one of theirs again, which changes nothing.
            longest = np.maximum(longest, sizes[self.part(np.arange(len(self.first)), turn)])
        return longest

    def padded(self, rows: np.ndarray, turn: int | np.ndarray = 0) -> tuple[np.ndarray, np.ndarray]:
        """(batch, longest, features) float32, zeros beyond the end, and the lengths (batch,)."""
        parts = self.part(rows, turn)
        sizes = np.append(np.diff(self.offsets), 0)[parts]
        batch = np.zeros(
            (len(rows), max(1, int(sizes.max(initial=0))), self.values.shape[1]), dtype=np.float32
        )
        for index, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            if size:
                start = self.offsets[part]
                stored = self.values[start : start + size].astype(np.float32)
                batch[index, :size] = (stored - self.mean) * self.scale
        return batch, sizes.astype(np.int64)


@dataclass(frozen=True)
class SourceRows:
    """The source of every row: subwords, pictures, sounds and the task, where there are any."""

    text: Ragged | None = None
    image: Frames | None = None
    audio: Frames | None = None
    task: np.ndarray | None = None
    """(rows,) numbers of tasks; None where there is only one."""

    def __len__(self) -> int:
        parts = (self.text, self.image, self.audio)
        return next(len(part) for part in parts if part is not None)

    @property
    def lengths(self) -> np.ndarray:
        """(rows, modalities) positions that each takes in an encoder."""
        columns = []
        if self.text is not None:
            columns.append(self.text.lengths)
        if self.image is not None:
            columns.append(self.image.lengths)
        if self.audio is not None:
            columns.append(-(-self.audio.lengths // AUDIO_STRIDE))
        return np.stack(columns, axis=1)

    @property
    def positions(self) -> np.ndarray:
        """(rows,) positions that each takes in all, the task's counted."""
        found: np.ndarray = self.lengths.sum(axis=1) + (self.task is not None)
        return found

    @property
    def longest(self) -> int:
        """The most positions that any row takes."""
        return int(self.positions.max(initial=0))

    def take(self, rows: np.ndarray) -> SourceRows:
        """The given rows alone, in the given order."""
        return SourceRows(
            None if self.text is None else self.text.take(rows),
            None if self.image is None else self.image.take(rows),
            None if self.audio is None else self.audio.take(rows),
            None if self.task is None else self.task[rows],
        )

    def collate(self, rows: np.ndarray, turn: int | np.ndarray = 0) -> dict[str, np.ndarray]:
        """A batch as the model takes it. `turn` chooses among the parts of pictures and sounds."""
        batch: dict[str, np.ndarray] = {}
        if self.text is not None:
            batch["text"] = self.text.padded(rows)
        for name, frames in (("image", self.image), ("audio", self.audio)):
            if frames is not None:
                batch[name], batch[f"{name}_length"] = frames.padded(rows, turn)
        if self.task is not None:
            batch["task"] = self.task[rows].astype(np.int64)
        return batch
