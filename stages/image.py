"""Image: pictures in, patches out; decoded, upright, scaled, cropped and, to train on, varied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage


class ImageAugment(Config):
    """Variants of the training split's pictures; others are cropped in the middle."""

    copies: Annotated[int, Field(ge=1, description="variants, one of which an epoch sees")] = 1
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
    patch: Annotated[int, Field(ge=1, description="side of a patch; crop is a multiple")] = 16
    channels: Annotated[Literal[1, 3], Field(description="3 is colour, 1 is grey")] = 3
    augment: Annotated[ImageAugment, Field(description="variation of the training split")] = (
        ImageAugment()
    )
    max_pixels: Annotated[
        int, Field(ge=1, description="larger pictures are refused before they are decoded")
    ] = 100_000_000
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="share of rejected rows that fails the stage")
    ] = 0.5

    @model_validator(mode="after")
    def _fits(self) -> ImageConfig:
        side = self.crop or self.resize
        if side > self.resize:
            raise ValueError(f"crop: {side} is larger than resize: {self.resize}")
        if side % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the picture's side, {side}")
        return self


class Image(Stage):
    """Turns pictures into patches; measures their mean and deviation on the training split."""

    Config: ClassVar[type[Config]] = ImageConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "records": Input("records", "rows, some of which have pictures", many=True)
    }
    output: ClassVar[str] = "features"
    libraries: ClassVar[tuple[str, ...]] = ("apache-beam", "opencv-python", "pillow", "numpy")
    seeded: ClassVar[bool] = True

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.media import ImageSettings
        from stages.media import run

        config: ImageConfig = self.config
        settings = ImageSettings(
            resize=config.resize,
            crop=config.crop or config.resize,
            patch=config.patch,
            channels=config.channels,
            max_pixels=config.max_pixels,
        )
        worker = ImageWorker(config, settings, context.seed)
        return run(context, inputs, worker, settings, config.channels, config.max_rejected)


class ImageWorker:
    """Patches of each picture of a group."""

    modality = "image"

    def __init__(self, config: ImageConfig, settings: Any, seed: int) -> None:
        self.config, self.settings, self.seed = config, settings, seed

    def process(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        from model.media import MediaError

        for row in rows:
            try:
                yield self.parts(row)
            except MediaError as error:
                yield error

    def parts(self, row: Mapping[str, Any]) -> list[Any]:
        """One array of patches, or as many as copies are asked for."""
        from model.image import crop, decode, flip, jitter, middle, patches, scale
        from model.media import seeded

        settings, augment = self.settings, self.config.augment
        picture = decode(row["image"], settings)
        training = row["split"] == "train"
        if training and augment.crop:
            picture = scale(picture, settings.resize)
        else:
            picture = middle(picture, settings.resize, settings.crop)
        if not training or augment == ImageAugment():
            return [patches(picture, settings)]
        parts = []
        for copy in range(augment.copies):
            random = seeded(self.seed, "image", row["id"], copy)
            cut = crop(picture, settings.crop, random) if augment.crop else picture
            if augment.flip and random.random() < 0.5:
                cut = flip(cut)
            if augment.jitter:
                cut = jitter(cut, augment.jitter, random)
            parts.append(patches(cut, settings))
        return parts
