"""The options of `audio`, as a user writes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipelines.stage import Config


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
