"""Previews of the pictures, sounds and so on that a report shows, small enough to be embedded."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from model.modalities.known import MEDIA, load
from model.modalities.modality import Preview

if TYPE_CHECKING:
    from pipelines.contracts.reports import Example
    from pipelines.store.artifacts import Artifact


def media_of(ids: Sequence[str], records: Sequence[Artifact]) -> dict[str, dict[str, Preview]]:
    """The previews of rows, by id and modality; only of rows that have any."""
    wanted = pl.Series(ids, dtype=pl.String)
    previews: dict[str, dict[str, Preview]] = {}
    for artifact in records:
        for path in artifact.files("rows/*.parquet"):
            held = [name for name in MEDIA if name in pl.read_parquet_schema(path)]
            if not held or wanted.is_empty():
                continue
            rows = pl.scan_parquet(path).filter(pl.col("id").is_in(wanted.implode()))
            for row in rows.select("id", *held).collect().iter_rows(named=True):
                shown = {name: load(MEDIA[name].preview)(row[name]) for name in held if row[name]}
                previews[row["id"]] = {
                    name: preview for name, preview in shown.items() if preview is not None
                }
    return previews


def with_previews(examples: Sequence[Example], records: Sequence[Artifact]) -> list[Example]:
    """The examples, each with data URLs of the modalities that it has, but for text."""
    shown = media_of([example.id for example in examples], records)
    return [
        example.model_copy(
            update={
                "previews": {
                    name: _url(preview) for name, preview in shown.get(example.id, {}).items()
                }
            }
        )
        for example in examples
    ]


def _url(preview: Preview) -> str:
    return f"data:{preview.kind};base64," + base64.b64encode(preview.data).decode("ascii")
