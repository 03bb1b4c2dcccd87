"""Sources of every modality as arrays, row for row, padded together on demand.

`model.contract` describes a batch of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from model.batching import Ragged
from model.modalities.media import MediaSettings
from model.modalities.modality import Modality
from model.names import WISH

Sizes = Mapping[str, int]
"""What a model is made for: `source` and `target` vocabularies, `shared` (1 if they are one),
`text` (1 if there is text as source), `tasks`; for every other modality, under its name, the
numbers in one of its vectors (0, or missing, if the model does not take it), and anything else that
its embedding must know (see `model.modalities.media.MediaSettings.sizes`)."""


def are_same(first: Sizes, other: Sizes) -> bool:
    """Whether two sizes are equal; a missing name counts as 0."""
    return all(first.get(name, 0) == other.get(name, 0) for name in {*first, *other})


def text_sizes(source: int, target: int, shared: bool = False) -> dict[str, int]:
    """`Sizes` for text alone, with one task."""
    return {"source": source, "target": target, "shared": int(shared), "text": 1, "tasks": 1}


class Frames:
    """Sequences of vectors, patches of pictures or frames of sounds for instance, normalised on
    demand.

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
        modality: Modality,
    ) -> None:
        """
        Args:
            values: (frames, features) of all parts, one after the other, as they are stored.
            offsets: (parts + 1,) where each part begins.
            first: (rows,) number of the first part of each row.
            counts: (rows,) parts of each row; 0 where it lacks the modality.
        """
        self.values, self.offsets, self.first, self.counts = values, offsets, first, counts
        self.settings, self.modality = settings, modality
        repeat = values.shape[1] // max(1, len(settings.mean))
        # Channels stand next to one another within a patch.
        self.mean = np.tile(np.array(settings.mean, dtype=np.float32), repeat)
        self.scale = 1 / np.tile(np.array(settings.deviation, dtype=np.float32), repeat)

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: np.ndarray) -> Frames:
        """Only the given rows; the values stay shared."""
        first, counts = self.first[rows], self.counts[rows]
        return Frames(self.values, self.offsets, first, counts, self.settings, self.modality)

    def part(self, rows: np.ndarray, turn: int | np.ndarray = 0) -> np.ndarray:
        """The part of each row in a turn (one per row, or one for all), -1 if it has none; turns
        wrap around."""
        counts = self.counts[rows]
        return np.where(counts > 0, self.first[rows] + turn % np.maximum(counts, 1), -1)

    def sizes(self, parts: np.ndarray) -> np.ndarray:
        """Frames of parts; 0 for -1."""
        ends = self.offsets[parts + 1]
        return np.where(parts < 0, 0, ends - self.offsets[np.maximum(parts, 0)])

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each row's longest part."""
        longest = np.zeros(len(self.first), dtype=np.int64)
        for turn in range(int(self.counts.max(initial=0))):
            # Rows with fewer parts see one of theirs again, which changes nothing.
            longest = np.maximum(longest, self.sizes(self.part(np.arange(len(self.first)), turn)))
        return longest

    def padded(self, rows: np.ndarray, turn: int | np.ndarray = 0) -> tuple[np.ndarray, np.ndarray]:
        """(batch, longest, features) float32, zeros beyond the end, and the lengths (batch,).

        If numbers may be missing, the mean replaces missing ones, and there are twice as many
        features: after the numbers, 1 for each that is present and 0 for each that is missing.
        """
        parts = self.part(rows, turn)
        sizes = self.sizes(parts)
        width = self.values.shape[1]
        features = 2 * width if self.modality.missing else width
        batch = np.zeros((len(rows), max(1, int(sizes.max(initial=0))), features), dtype=np.float32)
        for index, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            if size:
                start = self.offsets[part]
                stored = self.values[start : start + size].astype(np.float32)
                batch[index, :size, :width] = (stored - self.mean) * self.scale
                if self.modality.missing:
                    present = ~np.isnan(stored)
                    batch[index, :size, :width][~present] = 0
                    batch[index, :size, width:] = present
        return batch, sizes.astype(np.int64)


@dataclass(frozen=True)
class SourceRows:
    """The source of every row: subwords, the other modalities and the task, where there are any."""

    text: Ragged | None = None
    media: Mapping[str, Frames] = field(default_factory=dict)
    task: np.ndarray | None = None
    """(rows,) numbers of tasks; None where there is only one."""
    wish: np.ndarray | None = None
    """(rows, values) what each output should have, see `model.wishes`; None for no wishes."""

    def __len__(self) -> int:
        parts = (self.text, *self.media.values())
        return next(len(part) for part in parts if part is not None)

    @property
    def lengths(self) -> np.ndarray:
        """(rows, modalities) positions that each takes in an encoder."""
        columns = [] if self.text is None else [self.text.lengths]
        columns += [-(-part.lengths // part.modality.stride) for part in self.media.values()]
        return np.stack(columns, axis=1)

    @property
    def positions(self) -> np.ndarray:
        """(rows,) total positions of each row, the task's counted."""
        positions: np.ndarray = self.lengths.sum(axis=1) + (self.task is not None)
        return positions

    @property
    def longest(self) -> int:
        """The most positions that any row takes."""
        return int(self.positions.max(initial=0))

    def take(self, rows: np.ndarray) -> SourceRows:
        """Only the given rows, in the given order."""
        return SourceRows(
            None if self.text is None else self.text.take(rows),
            {name: part.take(rows) for name, part in self.media.items()},
            None if self.task is None else self.task[rows],
            None if self.wish is None else self.wish[rows],
        )

    def collate(self, rows: np.ndarray, turn: int | np.ndarray = 0) -> dict[str, np.ndarray]:
        """A batch as the model takes it. `turn` chooses among the parts of a row."""
        batch: dict[str, np.ndarray] = {}
        if self.text is not None:
            batch["text"] = self.text.padded(rows)
        for name, part in self.media.items():
            batch[name], batch[f"{name}_length"] = part.padded(rows, turn)
        if self.task is not None:
            batch["task"] = self.task[rows].astype(np.int64)
        if self.wish is not None:
            batch[WISH] = self.wish[rows]
        return batch
