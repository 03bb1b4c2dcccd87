"""What `audio` does with the sounds of a group of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from model.modalities.media import Row
from stages.audio.options import AudioConfig

HELD_SAMPLES = 16_000_000
"""Decoded samples that a worker holds before it transforms them."""


class AudioWorker:
    """Log-mel frames of the sounds of a group, transformed together."""

    modality = "audio"

    def __init__(self, config: AudioConfig, settings: Any, filters: Any, seed: int) -> None:
        self.config, self.settings, self.filters, self.seed = config, settings, filters, seed

    def process(self, rows: Sequence[Row]) -> Iterator[Any]:
        from model.modalities.media import MediaError

        # Only so many at a time that the samples of long recordings fit into memory.
        group: list[tuple[Row, Any]] = []
        held = 0
        for row in rows:
            try:
                pieces = self.pieces(row)
                held += sum(map(len, pieces))
                group.append((row, pieces))
            except MediaError as error:
                group.append((row, error))
            if held > HELD_SAMPLES:
                yield from self.transformed(group)
                group, held = [], 0
        yield from self.transformed(group)

    def transformed(self, group: Sequence[tuple[Row, Any]]) -> Iterator[Any]:
        from model.modalities.audio.files import log_mel
        from model.modalities.media import MediaError

        decoded = [pieces for _, pieces in group]
        clips = [piece for pieces in decoded if isinstance(pieces, list) for piece in pieces]
        frames = iter(log_mel(clips, self.settings, self.filters))
        for row, pieces in group:
            if isinstance(pieces, MediaError):
                yield pieces
            else:
                yield self.varied(row, [next(frames) for _ in pieces])

    def pieces(self, row: Row) -> list[Any]:
        """The samples of each piece that a sound is cut into. Raises `MediaError`."""
        from model.modalities.audio.files import decode, sounding, windows
        from model.modalities.media import MediaError

        config, rate = self.config, self.config.sample_rate
        cut = config.segment.silence is not None or config.segment.window is not None
        samples = decode(row["audio"], self.settings, None if cut else config.max_seconds)
        if len(samples) < config.min_seconds * rate:
            raise MediaError("too short", f"{len(samples) / rate:.3f} s")
        pieces = [samples]
        if config.segment.silence is not None:
            intervals = sounding(samples, config.segment.silence)
            pieces = [samples[start:end] for start, end in intervals]
        if config.segment.window is not None:
            length = round(config.segment.window * rate)
            overlap = round(config.segment.overlap * rate)
            pieces = [part for piece in pieces for part in windows(piece, length, overlap)]
        usable = [piece for piece in pieces if len(piece) >= config.min_seconds * rate]
        if not usable:
            raise MediaError("only silence", f"{len(samples) / rate:.1f} s")
        longest = max(len(piece) for piece in usable) / rate
        if longest > config.max_seconds:
            raise MediaError("too long", f"{longest:.1f} s, limit {config.max_seconds}")
        return usable

    def varied(self, row: Row, pieces: list[Any]) -> list[Any]:
        """The pieces; for training, as many variants of each as `copies` asks for."""
        from model.modalities.audio.files import spec_augment
        from model.modalities.media import seeded

        augment = self.config.augment
        if row["split"] != "train" or not (augment.time_masks or augment.frequency_masks):
            return pieces
        random = seeded(self.seed, "spec", row["id"])
        return [
            spec_augment(piece, augment.time_masks, augment.frequency_masks, random)
            for _ in range(augment.copies)
            for piece in pieces
        ]
