"""How a series of readings becomes a sequence of vectors."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model.modalities.media import MediaSettings


class SeriesSettings(MediaSettings):
    """`mean` and `deviation` are per channel, over the present readings."""

    channels: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] = 400

    @property
    def features(self) -> int:
        return self.channels

    @property
    def sizes(self) -> dict[str, int]:
        return {"series": 2 * self.channels}  # each reading, and whether it is present
