"""Audio: sounds in, log-mel frames out; mono, resampled, cut into pieces and varied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

HELD_SAMPLES = 16_000_000
"""Decoded samples that a worker holds before it transforms them."""


class SegmentConfig(Config):
    """How long recordings are cut; each piece is decoded, and trained on in turn."""

    silence: Annotated[
        float | None,
        Field(gt=0, description="cut where it is this many dB below the loudest frame"),
    ] = None
    window: Annotated[
        float | None, Field(gt=0, description="cut into windows of so many seconds")
    ] = None
    overlap: Annotated[float, Field(ge=0, description="seconds that windows share")] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> SegmentConfig:
        if self.overlap and self.window is None:
            raise ValueError("overlap: is of windows; say window:")
        if self.window is not None and self.overlap >= self.window:
            raise ValueError(f"overlap: {self.overlap} leaves nothing of a window: {self.window}")
        return self


class AudioAugment(Config):
    """Variants of the training split's sounds, by SpecAugment."""

    copies: Annotated[int, Field(ge=1, description="variants, one of which an epoch sees")] = 1
    time_masks: Annotated[int, Field(ge=0, description="stretches of frames masked")] = 0
    frequency_masks: Annotated[int, Field(ge=0, description="bands of mel bins masked")] = 0


class AudioConfig(Config):
    """How sounds become log-mel frames."""

    sample_rate: Annotated[int, Field(ge=1000, description="Hz after resampling")] = 16_000
    window: Annotated[int, Field(ge=16, description="samples of a frame")] = 400
    hop: Annotated[int, Field(ge=1, description="samples from frame to frame")] = 160
    mels: Annotated[int, Field(ge=4, description="mel bins of a frame")] = 80
    segment: Annotated[SegmentConfig, Field(description="cutting into pieces")] = SegmentConfig()
    augment: Annotated[AudioAugment, Field(description="variation of the training split")] = (
        AudioAugment()
    )
    min_seconds: Annotated[float, Field(ge=0, description="shorter sounds are rejected")] = 0.05
    max_seconds: Annotated[float, Field(gt=0, description="longer pieces are rejected")] = 20.0
    max_samples: Annotated[
        int, Field(ge=1, description="files of more samples are refused before they are decoded")
    ] = 100_000_000
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="share of rejected rows that fails the stage")
    ] = 0.5


class Audio(Stage):
    """Turns sounds into log-mel frames; measures their mean and deviation on the training split."""

    Config: ClassVar[type[Config]] = AudioConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "records": Input("records", "rows, some of which have sounds", many=True)
    }
    output: ClassVar[str] = "features"
    libraries: ClassVar[tuple[str, ...]] = (
        "apache-beam",
        "librosa",
        "soundfile",
        "soxr",
        "scipy",
        "numpy",
    )
    seeded: ClassVar[bool] = True

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.audio import mel_filters, save_filters
        from model.media import AudioSettings
        from stages.media import run

        config: AudioConfig = self.config
        settings = AudioSettings(
            sample_rate=config.sample_rate,
            window=config.window,
            hop=config.hop,
            mels=config.mels,
            max_samples=config.max_samples,
        )
        # Made once and given to every worker: librosa takes seconds to compile itself.
        folder = context.output / "audio"
        folder.mkdir(exist_ok=True)
        filters = mel_filters(settings)
        save_filters(folder, filters)
        worker = AudioWorker(config, settings, filters, context.seed)
        return run(context, inputs, worker, settings, config.mels, config.max_rejected)


class AudioWorker:
    """Log-mel frames of the sounds of a group, transformed together."""

    modality = "audio"

    def __init__(self, config: AudioConfig, settings: Any, filters: Any, seed: int) -> None:
        self.config, self.settings, self.filters, self.seed = config, settings, filters, seed

    def process(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        from model.media import MediaError

        # Few enough at a time that the samples of long recordings fit into memory.
        group: list[tuple[Mapping[str, Any], Any]] = []
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

    def transformed(self, group: Sequence[tuple[Mapping[str, Any], Any]]) -> Iterator[Any]:
        from model.audio import log_mel
        from model.media import MediaError

        found = [pieces for _, pieces in group]
        clips = [piece for pieces in found if isinstance(pieces, list) for piece in pieces]
        frames = iter(log_mel(clips, self.settings, self.filters))
        for row, pieces in group:
            if isinstance(pieces, MediaError):
                yield pieces
            else:
                yield self.varied(row, [next(frames) for _ in pieces])

    def pieces(self, row: Mapping[str, Any]) -> list[Any]:
        """The samples of each piece that a sound is cut into. Raises `MediaError`."""
        from model.audio import decode, sounding, windows
        from model.media import MediaError

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
        kept = [piece for piece in pieces if len(piece) >= config.min_seconds * rate]
        if not kept:
            raise MediaError("only silence", f"{len(samples) / rate:.1f} s")
        longest = max(len(piece) for piece in kept) / rate
        if longest > config.max_seconds:
            raise MediaError("too long", f"{longest:.1f} s, limit {config.max_seconds}")
        return kept

    def varied(self, row: Mapping[str, Any], pieces: list[Any]) -> list[Any]:
        """The pieces, and for training as many variants of each as copies are asked for."""
        from model.audio import spec_augment
        from model.media import seeded

        augment = self.config.augment
        if row["split"] != "train" or not (augment.time_masks or augment.frequency_masks):
            return pieces
        random = seeded(self.seed, "spec", row["id"])
        return [
            spec_augment(piece, augment.time_masks, augment.frequency_masks, random)
            for _ in range(augment.copies)
            for piece in pieces
        ]
