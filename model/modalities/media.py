"""What pictures and sounds have in common: settings as data, limits, and how a bad file is told.

Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class MediaError(ValueError):
    """A file that cannot be used: a reason that is counted, and a detail for the person."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MediaSettings(BaseModel):
    """Base of both modalities' settings. They travel with features, model and graphs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()


class ImageSettings(MediaSettings):
    """How a picture becomes a sequence of patches; `mean` and `deviation` are per channel."""

    resize: Annotated[int, Field(ge=1)] = 224
    crop: Annotated[int, Field(ge=1)] = 224
    patch: Annotated[int, Field(ge=1)] = 16
    channels: int = 3
    max_pixels: int = 100_000_000

    @property
    def columns(self) -> int:
        """Patches in a row of the picture."""
        return self.crop // self.patch

    @property
    def features(self) -> int:
        """Numbers in a patch."""
        return self.patch * self.patch * self.channels


class AudioSettings(MediaSettings):
    """How a sound becomes log-mel frames; `mean` and `deviation` are per mel bin."""

    sample_rate: Annotated[int, Field(ge=1000)] = 16_000
    window: Annotated[int, Field(ge=16)] = 400
    hop: Annotated[int, Field(ge=1)] = 160
    mels: Annotated[int, Field(ge=4)] = 80
    max_samples: int = 100_000_000

    @property
    def features(self) -> int:
        return self.mels


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends on the parts alone: the same on any machine, in any order."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
