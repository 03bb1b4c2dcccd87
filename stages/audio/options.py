"""The options of `audio`, as a user writes them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipelines.stage import Config


class SegmentConfig(Config):
    """How to cut long recordings. Each epoch trains on the next piece; `generate` takes all."""

    silence: Annotated[
        float | None,
        Field(gt=0, description="cut where it is this many dB below the loudest frame"),
    ] = None
    window: Annotated[
        float | None, Field(gt=0, description="cut into windows of this many seconds")
    ] = None
    overlap: Annotated[float, Field(ge=0, description="seconds that two windows share")] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> SegmentConfig:
        if self.overlap and self.window is None:
            raise ValueError("overlap: is an option of windows; set window: too")
        if self.window is not None and self.overlap >= self.window:
            raise ValueError(f"overlap: {self.overlap} must be less than window: {self.window}")
        return self


class AudioAugment(Config):
    """Variants of the training split's sounds, by SpecAugment."""

    copies: Annotated[int, Field(ge=1, description="variants; each epoch uses one of them")] = 1
    time_masks: Annotated[int, Field(ge=0, description="masked ranges of frames")] = 0
    frequency_masks: Annotated[int, Field(ge=0, description="masked bands of mel bins")] = 0


class AudioConfig(Config):
    """How sounds become log-mel frames."""

    sample_rate: Annotated[int, Field(ge=1000, description="Hz after resampling")] = 16_000
    window: Annotated[int, Field(ge=16, description="samples in a frame")] = 400
    hop: Annotated[int, Field(ge=1, description="samples from one frame to the next")] = 160
    mels: Annotated[int, Field(ge=4, description="mel bins in a frame")] = 80
    segment: Annotated[SegmentConfig, Field(description="cutting into pieces")] = SegmentConfig()
    augment: Annotated[AudioAugment, Field(description="augmentation of the training split")] = (
        AudioAugment()
    )
    min_seconds: Annotated[float, Field(ge=0, description="shorter sounds are rejected")] = 0.05
    max_seconds: Annotated[float, Field(gt=0, description="longer pieces are rejected")] = 20.0
    max_samples: Annotated[
        int, Field(ge=1, description="files with more samples are rejected before decoding")
    ] = 100_000_000
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="the stage fails if more than this share is rejected")
    ] = 0.5
