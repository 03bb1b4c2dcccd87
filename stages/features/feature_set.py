"""Features as the stages pass them on: shards of ids, patches and frames, joined by row.

Every kind of features has a shard for each shard of the records that it was made from, with the
same name; so one shard of text, pictures and sounds can be joined without reading other shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet

from model.batching import Ragged
from model.modalities.known import MEDIA
from model.modalities.media import MediaSettings
from model.modalities.processing import Processor, load_settings
from model.modalities.sources import Frames, SourceRows
from model.modalities.text import TextProcessor
from pipelines.contracts.tasks import Task
from pipelines.store.shared import WHOLE_DISK, Shared, SharedPath
from stages.features.columns import ragged

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact


@dataclass(frozen=True)
class FeatureSet:
    """The features of all modalities of some rows, text (with the targets) first."""

    text: Artifact
    media: Mapping[str, Artifact]

    @classmethod
    def of(cls, artifacts: Sequence[Artifact]) -> FeatureSet:
        """Sorts features by modality. Raises `ValueError` if text is missing, a modality is given
        twice, or rows have a modality without features."""
        by_modality: dict[str, Artifact] = {}
        for artifact in artifacts:
            modality = artifact.properties["modality"]
            if modality in by_modality:
                raise ValueError(f"features: names two sets of {modality} features")
            by_modality[modality] = artifact
        if "text" not in by_modality:
            raise ValueError("features: must name a text stage: it makes the targets")
        text = by_modality.pop("text")
        for task, facts in text.tasks.items():
            for modality in facts.separate_modalities:
                if modality != "text" and modality not in by_modality:
                    raise ValueError(
                        f"the rows of task {task!r} have {modality}, but features: names no "
                        f"{modality} stage"
                    )
        return cls(text, by_modality)

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.text.tasks

    @property
    def processor(self) -> Processor:
        """All preprocessing that the features went through."""
        return self.paths.processor

    def shards(self) -> list[Path]:
        return self.text.files("rows/*.parquet")

    def size_of(self, shard: Path) -> int:
        """Bytes of the features of all modalities in a shard of the text features."""
        media = [artifact.folder / "rows" / shard.name for artifact in self.media.values()]
        paths = [shard, *media]
        return sum(path.stat().st_size for path in paths if path.exists())

    @property
    def paths(self) -> FeaturePaths:
        return self.shared_paths(WHOLE_DISK)

    def shared_paths(self, shared: Shared) -> FeaturePaths:
        """Where they are for workers."""
        media = {name: shared.path(media.folder) for name, media in self.media.items()}
        return FeaturePaths(shared.path(self.text.folder), media)


@dataclass(frozen=True)
class FeaturePaths:
    """Where features are, in the form that is sent to workers."""

    text: SharedPath
    media: Mapping[str, SharedPath]

    @property
    def processor(self) -> Processor:
        folders = {name: (folder / name).whole() for name, folder in self.media.items()}
        return Processor(TextProcessor.load((self.text / "text").whole()), folders)

    def load(self, shards: Sequence[str], split: str | None, each_part: bool = False) -> Rows:
        """The rows of a split in some shards of the text features, with all modalities; for None,
        of all splits.

        A row with a rejected modality is left out, and listed in `Rows.missing`.

        Args:
            shards: their files' names.
            each_part: a row whose sound was cut into pieces occurs once for each piece, with the
                piece's number in the column `part`.
        """
        tables = [
            pl.read_parquet(Path(self.text / "rows" / name)).with_columns(shard=pl.lit(name))
            for name in shards
        ]
        table = pl.concat(tables, how="diagonal")
        if split is not None:
            table = table.filter(pl.col("split") == split)
        processor = self.processor
        loaded = {name: _load_media(folder, name, shards) for name, folder in self.media.items()}
        lacking = [
            pl.when(
                pl.col("modalities").str.split("+").list.contains(name)
                & ~pl.col("id").is_in(list(places))
            ).then(pl.lit(f"{name} was rejected"))
            for name, (places, _, _) in loaded.items()
        ]
        nothing = pl.repeat(None, pl.len(), dtype=pl.String)
        lost = table.select(pl.coalesce(*lacking, nothing)).to_series()
        rows = table.filter(lost.is_null())
        missing = table.filter(lost.is_not_null()).with_columns(reason=lost.drop_nulls())
        turns = None
        if each_part:
            counts = np.ones(len(rows), dtype=np.int64)
            for places, _, _ in loaded.values():
                counts = np.maximum(counts, [places.get(id, (0, 1))[1] for id in rows["id"]])
            turns = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            rows = rows[np.repeat(np.arange(len(rows)), counts)].with_columns(part=pl.Series(turns))
        frames = {
            name: _frames(rows["id"], turns, media, processor.settings[name], name)
            for name, media in loaded.items()
        }
        text = ragged(rows["source_ids"]) if processor.text.settings.sources else None
        source = SourceRows(text, frames, processor.task_numbers(rows["task"].to_list()))
        return Rows(rows, source, ragged(rows["target_ids"]), missing)


@dataclass(frozen=True)
class Rows:
    """Rows with their features, in the order of the table."""

    table: pl.DataFrame
    source: SourceRows
    target: Ragged
    missing: pl.DataFrame
    """Rows that are not in the table, with its columns and the reason."""

    def of(self, split: str) -> Rows:
        """Only the rows of a split."""
        chosen = (self.table["split"] == split).fill_null(False)
        numbers = np.flatnonzero(chosen.to_numpy())
        missing = self.missing.filter(pl.col("split") == split)
        source, target = self.source.take(numbers), self.target.take(numbers)
        return Rows(self.table.filter(chosen), source, target, missing)

    def without(self, reasons: pl.Series) -> Rows:
        """Only the rows without a reason (null); the others are among the missing ones."""
        kept = reasons.is_null()
        lost = self.table.filter(~kept).with_columns(reason=reasons.drop_nulls())
        numbers = np.flatnonzero(kept.to_numpy())
        return Rows(
            self.table.filter(kept),
            self.source.take(numbers),
            self.target.take(numbers),
            pl.concat([self.missing, lost], how="diagonal"),
        )


Places = dict[str, tuple[int, int]]
"""Id to the number of its first part, and how many it has."""


def _load_media(
    folder: SharedPath, name: str, shards: Sequence[str]
) -> tuple[Places, Any, np.ndarray]:
    """Where each id's parts are, the values (frames, features) of all, and the parts' offsets."""
    tables = [parquet.read_table(path) for path in map((folder / "rows").file_in, shards) if path]
    width = load_settings((folder / name).whole(), name).features
    kind = np.dtype(MEDIA[name].stored)
    if not tables:
        return {}, np.zeros((0, width), kind), np.zeros(1, dtype=np.int64)
    table = pa.concat_tables(tables).combine_chunks()
    places: Places = {}
    for number, id in enumerate(table["id"].to_pylist()):
        first, count = places.get(id, (number, 0))
        places[id] = first, count + 1
    parts = pa.concat_arrays(table["values"].chunks)
    ends = np.frombuffer(parts.buffers()[1], np.int64, len(parts) + 1, 8 * parts.offset)
    values = np.frombuffer(parts.buffers()[2], kind, int(ends[-1]) // kind.itemsize)
    return places, values.reshape(-1, width), ends // (kind.itemsize * width)


def _frames(
    ids: pl.Series,
    turns: np.ndarray | None,
    loaded: tuple[Places, Any, np.ndarray],
    settings: MediaSettings,
    name: str,
) -> Frames:
    """Frames of rows by id; with `turns`, only of one part of each row."""
    places, values, offsets = loaded
    spans = [places.get(id, (0, 0)) for id in ids]
    first = np.array([number for number, _ in spans], dtype=np.int64)
    counts = np.array([count for _, count in spans], dtype=np.int64)
    if turns is not None:
        first = first + turns % np.maximum(counts, 1)
        counts = np.minimum(counts, 1)
    return Frames(values, offsets, first, counts, settings, MEDIA[name])
