"""The options of `image`, as a user writes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.stage import Config


class ImageAugment(Config):
    """Variants of the training split's pictures; other pictures are cropped in the middle."""

    copies: Annotated[int, Field(ge=1, description="variants; each epoch uses one of them")] = 1
    crop: Annotated[bool, Field(description="crop at a random place")] = False
    flip: Annotated[bool, Field(description="mirror half of them")] = False
    jitter: Annotated[
        float, Field(ge=0, lt=1, description="change of brightness, contrast and saturation")
    ] = 0.0


class ImageConfig(Config):
    """How pictures become sequences of patches."""

    resize: Annotated[int, Field(ge=1, description="short side after scaling, in pixels")] = 224
    crop: Annotated[
        int | None, Field(ge=1, description="side of the square cut out; resize if not given")
    ] = None
    patch: Annotated[int, Field(ge=1, description="side of a patch; must divide crop")] = 16
    channels: Annotated[Literal[1, 3], Field(description="3 is colour, 1 is grey")] = 3
    augment: Annotated[ImageAugment, Field(description="augmentation of the training split")] = (
        ImageAugment()
    )
    max_pixels: Annotated[
        int, Field(ge=1, description="larger pictures are rejected before decoding")
    ] = 100_000_000
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="the stage fails if more than this share is rejected")
    ] = 0.5

    @model_validator(mode="after")
    def _fits(self) -> ImageConfig:
        side = self.crop or self.resize
        if side > self.resize:
            raise ValueError(f"crop: {side} is larger than resize: {self.resize}")
        if side % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the picture's side, {side}")
        return self
