"""Series of readings as JSON, and as arrays.

A series is a list of time steps, each a list of one number for every channel, or null where a
reading is missing; a list of numbers alone is a series of one channel. Written once for training
and serving. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.modalities.media import MediaError
from model.modalities.series.settings import SeriesSettings

NUMBER_BYTES, SPARE_BYTES = 64, 4096
"""Bytes that a number can take with spaces and line ends around it, and that are left for others:
JSON takes many times its size in memory."""
LARGEST = 1e30
"""Larger numbers are treated as a sensor fault: their squares would not be finite."""


def decode(data: bytes | memoryview, settings: SeriesSettings) -> np.ndarray:
    """(steps, channels) float32, NaN where a reading is missing.

    Raises `MediaError`: not a series, a wrong number of channels, too long, or without any
    reading.
    """
    most = NUMBER_BYTES * settings.channels * settings.max_steps + SPARE_BYTES
    if len(data) > most:
        raise MediaError("too long", f"{len(data)} bytes for {settings.max_steps} steps")
    try:
        listed = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise MediaError("not a series", str(error)) from error
    if not isinstance(listed, list):
        raise MediaError("not a series", f"a {type(listed).__name__} instead of a list")
    if len(listed) > settings.max_steps:
        raise MediaError("too long", f"{len(listed)} steps, limit {settings.max_steps}")
    rows = [step if isinstance(step, list) else [step] for step in listed]
    readings = np.empty((len(rows), settings.channels), dtype=np.float32)
    for number, row in enumerate(rows):
        if len(row) != settings.channels:
            raise MediaError(
                "wrong number of channels",
                f"step {number + 1} has {len(row)} instead of {settings.channels}",
            )
        readings[number] = [_reading(value, number) for value in row]
    if not np.isfinite(readings).any():
        raise MediaError("no readings", f"{len(rows)} steps, and every number is missing")
    return readings


def _reading(value: Any, step: int) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MediaError("not a number", f"step {step + 1} has {value!r}")
    if value != value:
        return math.nan
    if abs(value) > LARGEST:  # a whole number may be too large for a float
        raise MediaError("not a number", f"step {step + 1} has {value!r}, limit {LARGEST}")
    return float(value)


def prepared(files: Sequence[bytes], settings: SeriesSettings, folder: Path) -> list[np.ndarray]:
    """See `model.modalities.modality.Modality.preparation`."""
    return [decode(data, settings) for data in files]
