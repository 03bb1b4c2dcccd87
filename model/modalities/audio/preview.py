"""Sounds on a page."""

from __future__ import annotations

from model.modalities.audio.files import decoded, encode
from model.modalities.media import MediaError, damage_as
from model.modalities.modality import Preview

SECONDS = 10
"""Length of the preview."""
MOST_SAMPLES = 5_000_000
"""Of the preview, in all channels."""


def preview(data: bytes) -> Preview | None:
    """The beginning of a sound, as 16-bit FLAC; None if it cannot be played."""
    try:
        samples, rate = decoded(data, MOST_SAMPLES, part=SECONDS)
        with damage_as("cannot be played"):
            return Preview("audio/flac", encode(samples, rate), ".flac")
    except MediaError:
        return None
