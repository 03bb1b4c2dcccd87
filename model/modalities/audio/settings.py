"""How a sound becomes log-mel frames."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model.modalities.media import MediaSettings


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

    @property
    def sizes(self) -> dict[str, int]:
        return {"audio": self.features}
