"""Series: sensor readings in, vectors out, one per time step."""

from __future__ import annotations

from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.series.options import SeriesConfig
from stages.series.work import SeriesWorker


class Series(Stage[SeriesConfig]):
    """Reads series; measures the mean and deviation of each channel on the training split."""

    inputs = {"records": Input("records", "rows, some of which have series", many=True)}
    output = "features"
    libraries = ("apache-beam", "numpy")

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.modalities.series.settings import SeriesSettings
        from stages.features.media import run
        from stages.features.moments import FINE

        config = self.config
        settings = SeriesSettings(channels=config.channels, max_steps=config.max_steps)
        worker = SeriesWorker(settings)
        return run(context, inputs, worker, settings, config.channels, config.max_rejected, FINE)
