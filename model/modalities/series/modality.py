"""Series of readings as a modality."""

from __future__ import annotations

import json
from typing import Any

from model.modalities.media import MediaError
from model.modalities.modality import Modality
from model.modalities.series.settings import SeriesSettings


def held(value: Any) -> bytes | None:
    """The content of a table cell: a list, or a list written as JSON. Raises `MediaError`."""
    if isinstance(value, list):
        try:
            return json.dumps(value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise MediaError("not a series", str(error)) from error
    if isinstance(value, str) and value.lstrip().startswith("["):
        return value.encode("utf-8", "surrogateescape")
    return None


SERIES = Modality(
    name="series",
    title="series",
    settings=SeriesSettings,
    preparation="model.modalities.series.files:prepared",
    embedding="model.modalities.series.embedding:StepEmbedding",
    preview="model.modalities.series.preview:preview",
    missing=True,
    held=held,
)
