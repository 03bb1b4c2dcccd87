"""Raw text, pictures and sounds to what a network takes: what serving does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.batching import Ragged
from model.modalities.processing import Processor
from model.modalities.sources import Frames, SourceRows


def sources_of(processor: Processor, records: Sequence[Mapping[str, Any]]) -> SourceRows:
    """Raw records, each with `task` and any of `text` (a string), `image` and `audio` (the
    bytes of a file), as sources.

    Raises:
        model.modalities.media.MediaError: a picture or a sound cannot be used.
        ValueError: a record has a modality or a task that the model was not made for.
    """
    for record in records:
        for name, there in (
            ("text", processor.text.settings.sources),
            ("image", processor.image),
            ("audio", processor.audio),
        ):
            if record.get(name) is not None and not there:
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
        _frames(processor, "image", records),
        _frames(processor, "audio", records),
        processor.task_numbers([str(record["task"]) for record in records]),
    )


def _frames(processor: Processor, name: str, records: Sequence[Mapping[str, Any]]) -> Frames | None:
    settings = processor.settings(name)
    if settings is None:
        return None
    held = [record.get(name) for record in records]
    parts = _prepare(processor, name, [data for data in held if data is not None])
    counts = np.array([data is not None for data in held], dtype=np.int64)
    empty = np.zeros((0, settings.features), dtype=np.float32)
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    values = np.concatenate([empty, *parts])
    return Frames(values, offsets, np.cumsum(counts) - counts, counts, settings)


def _prepare(processor: Processor, name: str, files: list[bytes]) -> list[np.ndarray]:
    # Imported here, because a model of text alone needs neither OpenCV nor libsndfile to start.
    if name == "image":
        from model.modalities.image import prepare

        assert processor.image is not None
        return [prepare(data, processor.image) for data in files]
    from model.modalities.audio import decode, load_filters, log_mel

    assert processor.audio is not None
    clips = [decode(data, processor.audio) for data in files]
    return log_mel(clips, processor.audio, load_filters(processor.folders["audio"]))
