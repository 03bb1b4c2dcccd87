"""Sounds on a page."""

from __future__ import annotations

import io

import soundfile

from model.modalities.modality import Preview

SECONDS = 10
"""Length of the preview."""


def preview(data: bytes) -> Preview | None:
    """The beginning of a sound, as 16-bit FLAC; None if it cannot be played."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            samples = file.read(SECONDS * rate, dtype="float32", always_2d=True).mean(axis=1)
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    except (soundfile.LibsndfileError, ValueError, TypeError):
        return None
    return Preview("audio/flac", stream.getvalue(), ".flac")
