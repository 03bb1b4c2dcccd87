"""Shards of records as pieces of work for Beam."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as parquet

from model.modalities.known import MEDIA
from pipelines.store.shared import Shared, SharedPath

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact


@dataclass(frozen=True)
class RecordShard:
    """A shard of records."""

    name: str
    """The same for the same content, whoever asks."""
    path: SharedPath
    rows: int
    columns: tuple[str, ...]
    """Those to read."""


def record_shards(
    records: Sequence[Artifact], shared: Shared, without: Collection[str] = MEDIA
) -> list[RecordShard]:
    """Every shard of some records, with its columns but for those in `without`."""
    shards: list[RecordShard] = []
    for artifact in records:
        for path in artifact.files("rows/*.parquet"):
            metadata = parquet.read_metadata(path)
            columns = metadata.schema.to_arrow_schema().names
            shards.append(
                RecordShard(
                    f"{artifact.digest[:12]}-{path.stem}",
                    shared.path(path),
                    metadata.num_rows,
                    tuple(name for name in columns if name not in without),
                )
            )
    return shards
