"""Audio: sounds in, log-mel frames out; mono, resampled, cut into pieces and augmented."""

from __future__ import annotations

from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.audio.options import AudioConfig
from stages.audio.work import AudioWorker


class Audio(Stage[AudioConfig]):
    """Turns sounds into log-mel frames; measures their mean and deviation on the training split."""

    inputs = {"records": Input("records", "rows, some of which have sounds", many=True)}
    output = "features"
    libraries = (
        "apache-beam",
        "librosa",
        "soundfile",
        "soxr",
        "scipy",
        "numpy",
    )
    seeded = True

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.modalities.audio.files import mel_filters, save_filters
        from model.modalities.audio.settings import AudioSettings
        from stages.features.media import run

        config = self.config
        settings = AudioSettings(
            sample_rate=config.sample_rate,
            window=config.window,
            hop=config.hop,
            mels=config.mels,
            max_samples=config.max_samples,
        )
        # Made once and given to every worker: librosa takes seconds to compile itself.
        folder = context.output / "audio"
        folder.mkdir(exist_ok=True)
        filters = mel_filters(settings)
        save_filters(folder, filters)
        worker = AudioWorker(config, settings, filters, context.seed)
        return run(context, inputs, worker, settings, config.mels, config.max_rejected)
