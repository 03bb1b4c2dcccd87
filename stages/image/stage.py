"""Image: pictures in, patches out; decoded, upright, scaled, cropped and, to train, augmented."""

from __future__ import annotations

from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.image.options import ImageConfig
from stages.image.work import ImageWorker


class Image(Stage[ImageConfig]):
    """Turns pictures into patches; measures their mean and deviation on the training split."""

    inputs = {"records": Input("records", "rows, some of which have pictures", many=True)}
    output = "features"
    libraries = ("apache-beam", "opencv-python", "pillow", "numpy")
    seeded = True

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.modalities.image.settings import ImageSettings
        from stages.features.media import run

        config = self.config
        settings = ImageSettings(
            resize=config.resize,
            crop=config.crop or config.resize,
            patch=config.patch,
            channels=config.channels,
            max_pixels=config.max_pixels,
        )
        worker = ImageWorker(config, settings, context.seed)
        return run(context, inputs, worker, settings, config.channels, config.max_rejected)
