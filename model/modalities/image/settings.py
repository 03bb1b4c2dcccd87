"""How a picture becomes a sequence of patches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model.modalities.media import MediaSettings


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

    @property
    def sizes(self) -> dict[str, int]:
        return {"image": self.features, "image_columns": self.columns}
