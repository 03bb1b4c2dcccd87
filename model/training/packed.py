"""Training rows on a disk: a corpus may be larger than the memory.

Rows are written once, one after the other, into a file for each kind of number; training maps the
files and reads what a batch needs. Whatever grows with the number of rows is in such a file, and
the system forgets what it has read whenever memory is short. The files are this machine's own, and
are made again from the features: their numbers have the processor's byte order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from model.batching import Ragged
from model.modalities.known import MEDIA
from model.modalities.media import MediaSettings
from model.modalities.sources import Frames, SourceRows
from model.training.rows import TrainingRows, check_tasks

FACTS = "facts.json"
TEXT, TARGET, TASK, LENGTHS, DRAWN = "text", "target", "task", "lengths", "drawn"


@dataclass(frozen=True)
class PackedRows(TrainingRows):
    """Rows whose numbers are in files."""

    packed_lengths: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), np.int32))
    drawn: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The rows of each task of a mix, each as often as it is drawn; without a mix, all of them,
    under the name ""."""

    @property
    def lengths(self) -> np.ndarray:
        return self.packed_lengths

    def groups(self, mix: Mapping[str, float]) -> list[np.ndarray]:
        return [self.drawn[name] for name in sorted(mix) or [""]]


class Columns:
    """Files of numbers in a folder, which grow, and then can be mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, tuple[str, tuple[int, ...]]] = {}
        """Type, and shape, by name."""
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()

    def add(self, name: str, numbers: np.ndarray) -> None:
        """Adds numbers, or rows of numbers of the same width, after those that are there."""
        if name not in self._files:
            self._files[name] = self._open.enter_context((self.folder / name).open("wb"))
            self.facts[name] = (numbers.dtype.str, (0, *numbers.shape[1:]))
        dtype, (count, *width) = self.facts[name]
        self._files[name].write(np.ascontiguousarray(numbers, dtype=dtype).data)
        self.facts[name] = (dtype, (count + len(numbers), *width))

    def close(self) -> None:
        self._open.close()

    def read(self, name: str) -> np.ndarray:
        """All numbers of a name, mapped."""
        dtype, shape = self.facts[name]
        if not np.prod(shape):
            return np.zeros(shape, dtype)
        mapped = np.memmap(self.folder / name, dtype=dtype, mode="r", shape=tuple(shape))
        return np.asarray(mapped)  # without what np.memmap does for every slice


class Packer:
    """Writes rows, a share of them at a time."""

    def __init__(self, folder: Path, mix: Mapping[str, float]) -> None:
        self.mix = mix
        self._columns = Columns(folder)
        self._rows = 0
        self._parts: dict[str, int] = {}
        """How many parts of each modality have been written."""
        self._tasks: set[str] = set()
        self._names: dict[str, int] = {}
        """The tasks of the mix, by the numbers in the names of files."""

    def add(self, rows: TrainingRows) -> None:
        """Adds rows after those that are there."""
        if not len(rows):
            return
        columns, source = self._columns, rows.source
        if source.text is not None:
            self._add_ragged(TEXT, source.text)
        self._add_ragged(TARGET, rows.target)
        for name, frames in source.media.items():
            self._add_frames(name, frames)
        if source.task is not None:
            columns.add(TASK, source.task.astype(np.int32))
        columns.add(LENGTHS, rows.lengths.astype(np.int32))
        self._tasks |= set(rows.tasks)
        names = sorted(set(rows.tasks)) if self.mix else [""]
        shares = dict.fromkeys(names, 1.0) if self.mix else {}
        for name, numbers in zip(names, rows.groups(shares), strict=True):
            number = self._names.setdefault(name, len(self._names))
            columns.add(f"{DRAWN}.{number}", self._rows + numbers)
        self._rows += len(rows)

    def _add_ragged(self, name: str, ragged: Ragged) -> None:
        self._columns.add(f"{name}.values", ragged.values.astype(np.int32))
        self._columns.add(f"{name}.lengths", ragged.lengths)

    def _add_frames(self, name: str, frames: Frames) -> None:
        """The parts that rows of these have, row by row; a part that several share is written for
        each."""
        counts = frames.counts
        runs = zip(frames.first.tolist(), counts.tolist(), strict=True)
        parts = np.array([part for first, count in runs for part in range(first, first + count)])
        parts = parts.astype(np.int64)
        values = frames.values
        for part in parts:
            span = values[frames.offsets[part] : frames.offsets[part + 1]]
            self._columns.add(f"{name}.values", span)
        if not len(parts):
            self._columns.add(f"{name}.values", values[:0])
        self._columns.add(f"{name}.lengths", frames.sizes(parts))
        before = self._parts.get(name, 0)
        self._columns.add(f"{name}.first", before + counts.cumsum() - counts)
        self._columns.add(f"{name}.counts", counts)
        self._parts[name] = before + len(parts)

    def finish(self) -> Path:
        """Adds what needs all rows; returns the folder. Raises `ValueError` for a mix of other
        tasks."""
        check_tasks(self.mix, self._tasks)
        columns = self._columns
        columns.close()
        for name in [each for each in columns.facts if each.endswith(".lengths")]:
            ends = name.replace(".lengths", ".offsets")
            with (columns.folder / ends).open("wb") as file:
                file.write(np.zeros(1, np.int64).data)
                total, lengths = 0, columns.read(name)
                for start in range(0, len(lengths), 2**20):
                    summed = total + np.cumsum(lengths[start : start + 2**20])
                    file.write(summed.data)
                    total = int(summed[-1])
            columns.facts[ends] = (np.dtype(np.int64).str, (len(lengths) + 1,))
            del columns.facts[name]
            (columns.folder / name).unlink()
        facts = {"columns": columns.facts, "names": self._names}
        (columns.folder / FACTS).write_text(json.dumps(facts))
        return columns.folder


def packed(folder: Path, media: Mapping[str, MediaSettings]) -> PackedRows:
    """The rows of a folder.

    Args:
        media: the settings of each modality but text, in the order of the features.
    """
    columns = Columns(folder)
    facts = json.loads((folder / FACTS).read_text())
    columns.facts = {
        name: (dtype, tuple(shape)) for name, (dtype, shape) in facts["columns"].items()
    }

    def ragged(name: str) -> Ragged:
        return Ragged(columns.read(f"{name}.values"), columns.read(f"{name}.offsets"))

    frames = {
        name: Frames(
            columns.read(f"{name}.values"),
            columns.read(f"{name}.offsets"),
            columns.read(f"{name}.first"),
            columns.read(f"{name}.counts"),
            settings,
            MEDIA[name],
        )
        for name, settings in media.items()
    }
    known = columns.facts
    drawn = {name: columns.read(f"{DRAWN}.{number}") for name, number in facts["names"].items()}
    return PackedRows(
        SourceRows(
            ragged(TEXT) if f"{TEXT}.values" in known else None,
            frames,
            columns.read(TASK) if TASK in known else None,
        ),
        ragged(TARGET),
        packed_lengths=columns.read(LENGTHS),
        drawn=drawn,
    )
