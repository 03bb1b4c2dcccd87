"""Shards of records as pieces of work for Beam."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import pyarrow.parquet as parquet

from model.modalities.known import MEDIA

if TYPE_CHECKING:
    from pipelines.running.beam_jobs import Item
    from pipelines.store.artifacts import Artifact


def shard_items(records: Sequence[Artifact], without: Collection[str] = MEDIA) -> list[Item]:
    """Every shard of some records as a piece of work: a name that is the same whoever asks, its
    path, its rows, and its columns but for those in `without`."""
    items: list[Item] = []
    for artifact in records:
        for path in artifact.files("rows/*.parquet"):
            facts = parquet.read_metadata(path)
            names = [name for name in facts.schema.to_arrow_schema().names if name not in without]
            items.append(
                {
                    "name": f"{artifact.digest[:12]}-{path.stem}",
                    "path": str(path),
                    "rows": facts.num_rows,
                    "columns": names,
                }
            )
    return items
