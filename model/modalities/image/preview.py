"""Pictures on a page."""

from __future__ import annotations

import cv2

from model.modalities.image.files import decode
from model.modalities.image.settings import ImageSettings
from model.modalities.media import MediaError, damage_as
from model.modalities.modality import Preview
from model.modalities.opencv import OPENCV

SIDE = 160
"""Largest side in the page, in pixels."""


@OPENCV
def preview(data: bytes) -> Preview | None:
    """A small PNG of a picture; None if it cannot be shown."""
    try:
        with damage_as("damaged picture"):
            pixels = decode(data, ImageSettings(resize=SIDE))
            ratio = SIDE / max(pixels.shape[:2])
            if ratio < 1:
                height, width = (max(1, round(side * ratio)) for side in pixels.shape[:2])
                pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    except MediaError:
        return None
    encoded: bytes = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    return Preview("image/png", encoded, ".png")
