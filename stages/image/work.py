"""What `image` does with a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from model.modalities.media import Row
from stages.image.options import ImageAugment, ImageConfig


class ImageWorker:
    """Patches of each picture of a group."""

    modality = "image"

    def __init__(self, config: ImageConfig, settings: Any, seed: int) -> None:
        self.config, self.settings, self.seed = config, settings, seed

    def process(self, rows: Sequence[Row]) -> Iterator[Any]:
        from model.modalities.image.files import PILLOW
        from model.modalities.media import MediaError, damage_as
        from model.modalities.opencv import OPENCV

        with OPENCV, PILLOW:  # once for all of them
            for row in rows:
                try:
                    with damage_as("damaged picture"):
                        parts = self.parts(row)
                except MediaError as error:
                    yield error
                else:
                    yield parts

    def parts(self, row: Row) -> list[Any]:
        """One array of patches, or as many as `copies` asks for."""
        from model.modalities.image.files import crop, decode, flip, jitter, middle, patches, scale
        from model.modalities.media import seeded

        settings, augment = self.settings, self.config.augment
        picture = decode(row["image"], settings)
        training = row["split"] == "train"
        if training and augment.crop:
            picture = scale(picture, settings)
        else:
            picture = middle(picture, settings)
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
