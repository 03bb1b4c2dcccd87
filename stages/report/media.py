"""Pictures and sounds of the rows that a report shows, small enough to be sent along."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import polars as pl
import soundfile

from model.modalities.image import decode
from model.modalities.media import ImageSettings, MediaError

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact

SIDE = 160
"""Largest side of a picture in the page, in pixels."""
SECONDS = 10
"""What is played of a sound."""


def media_of(ids: Sequence[str], records: Sequence[Artifact]) -> dict[str, dict[str, Any]]:
    """The bytes of `image` and `audio` of those of the rows that have any, by id."""
    wanted = pl.Series(ids, dtype=pl.String)
    found: dict[str, dict[str, Any]] = {}
    for artifact in records:
        for path in artifact.files("rows/*.parquet"):
            held = [name for name in ("image", "audio") if name in pl.read_parquet_schema(path)]
            if not held or wanted.is_empty():
                continue
            rows = pl.scan_parquet(path).filter(pl.col("id").is_in(wanted.implode()))
            for row in rows.select("id", *held).collect().iter_rows(named=True):
                found[row["id"]] = row
    return found


def with_media(
    examples: Sequence[Mapping[str, Any]], records: Sequence[Artifact]
) -> list[dict[str, Any]]:
    """The examples, each with `image` and `audio` as data URLs, or None."""
    found = media_of([example["id"] for example in examples], records)
    return [
        {
            **example,
            "image": _url("image/png", picture(found.get(example["id"], {}).get("image"))),
            "audio": _url("audio/flac", sound(found.get(example["id"], {}).get("audio"))),
        }
        for example in examples
    ]


def _url(kind: str, data: bytes | None) -> str | None:
    if data is None:
        return None
    return f"data:{kind};base64," + base64.b64encode(data).decode("ascii")


def picture(data: bytes | None) -> bytes | None:
    """A small PNG; None for no picture, or one that cannot be shown."""
    if data is None:
        return None
    try:
        pixels = decode(data, ImageSettings(resize=SIDE))
    except MediaError:
        return None
    ratio = SIDE / max(pixels.shape[:2])
    if ratio < 1:
        height, width = (max(1, round(side * ratio)) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    encoded: bytes = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    return encoded


def sound(data: bytes | None) -> bytes | None:
    """The beginning, as 16-bit FLAC; None for no sound, or one that cannot be played."""
    if data is None:
        return None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            samples = file.read(SECONDS * rate, dtype="float32", always_2d=True).mean(axis=1)
        stream = io.BytesIO()
        soundfile.write(stream, samples, rate, format="FLAC", subtype="PCM_16")
    except (soundfile.LibsndfileError, ValueError, TypeError):
        return None
    return stream.getvalue()
