"""Turns raw content of every modality into network inputs, as serving does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.batching import Ragged
from model.modalities.known import MEDIA, MODALITIES, load
from model.modalities.media import Row
from model.modalities.processing import Processor
from model.modalities.sources import Frames, SourceRows


def sources_of(processor: Processor, records: Sequence[Row]) -> SourceRows:
    """Raw records, each with `task` and any of `text` (a string) and the other modalities
    (bytes), as sources.

    Raises:
        model.modalities.media.MediaError: content cannot be used.
        ValueError: a record has a modality or a task that the model was not made for.
    """
    takes = {*processor.settings, *(["text"] if processor.text.settings.sources else [])}
    for record in records:
        for name in MODALITIES:
            if record.get(name) is not None and name not in takes:
                raise ValueError(f"the model was made without {name}")
    text = None
    if processor.text.settings.sources:
        encoded = processor.text.encode([record.get("text") or "" for record in records])
        empty: list[int] = []
        text = Ragged.of(
            [
                encoded.row(row) if record.get("text") else empty
                for row, record in enumerate(records)
            ]
        )
    return SourceRows(
        text,
        {name: _frames(processor, name, records) for name in processor.settings},
        processor.task_numbers([str(record["task"]) for record in records]),
    )


def _frames(processor: Processor, name: str, records: Sequence[Row]) -> Frames:
    settings = processor.settings[name]
    held = [record.get(name) for record in records]
    prepared = load(MEDIA[name].preparation)  # a text-only model needs no media library
    parts = prepared([data for data in held if data is not None], settings, processor.folders[name])
    counts = np.array([data is not None for data in held], dtype=np.int64)
    empty = np.zeros((0, settings.features), dtype=np.float32)
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    values = np.concatenate([empty, *parts])
    return Frames(values, offsets, np.cumsum(counts) - counts, counts, settings, MEDIA[name])
