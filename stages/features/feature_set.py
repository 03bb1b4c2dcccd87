"""Features as the stages pass them on: shards of ids, patches and frames, joined by row.

Every kind of features has a shard for each shard of the records it was made from, under the same
name; so a shard of text, of pictures and of sounds can be put together without looking further.
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
        """Sorts features by modality. Raises `ValueError` where text is missing, one is there
        twice, or rows have a modality that no features are given for."""
        found: dict[str, Artifact] = {}
        for artifact in artifacts:
            modality = artifact.properties["modality"]
            if modality in found:
                raise ValueError(f"features: names two sets of {modality} features")
            found[modality] = artifact
        if "text" not in found:
            raise ValueError("features: must name a text stage: it makes the targets")
        text = found.pop("text")
        for task, facts in text.tasks.items():
            for modality in facts.separate_modalities:
                if modality != "text" and modality not in found:
                    raise ValueError(
                        f"the rows of task {task!r} have {modality}, but features: names no "
                        f"{modality} stage"
                    )
        return cls(text, found)

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
        """Bytes of the features of all modalities in a shard of the text's."""
        media = [found.folder / "rows" / shard.name for found in self.media.values()]
        paths = [shard, *media]
        return sum(path.stat().st_size for path in paths if path.exists())

    @property
    def paths(self) -> FeaturePaths:
        return FeaturePaths(
            str(self.text.folder), {name: str(found.folder) for name, found in self.media.items()}
        )


@dataclass(frozen=True)
class FeaturePaths:
    """Where features lie, as it travels to workers."""

    text: str
    media: Mapping[str, str]

    @property
    def processor(self) -> Processor:
        folders = {name: Path(folder) / name for name, folder in self.media.items()}
        return Processor(TextProcessor.load(Path(self.text) / "text"), folders)

    def load(self, shards: Sequence[str], split: str, each_part: bool = False) -> Rows:
        """The rows of a split in some shards of the text features, with all modalities.

        A row of which a modality was rejected is left out, and told in `Rows.missing`.

        Args:
            each_part: a row whose sound was cut into pieces stands there once for each, with the
                piece's number in the column `part`.
        """
        tables = [
            pl.read_parquet(path).with_columns(shard=pl.lit(Path(path).name)) for path in shards
        ]
        table = pl.concat(tables, how="diagonal").filter(pl.col("split") == split)
        names = [Path(path).name for path in shards]
        processor = self.processor
        loaded = {name: _load_media(folder, name, names) for name, folder in self.media.items()}
        lacking = [
            pl.when(
                pl.col("modalities").str.split("+").list.contains(name)
                & ~pl.col("id").is_in(list(places))
            ).then(pl.lit(f"{name} was rejected"))
            for name, (places, _, _) in loaded.items()
        ]
        nothing = pl.repeat(None, pl.len(), dtype=pl.String)
        lost = table.select(pl.coalesce(*lacking, nothing)).to_series()
        kept = table.filter(lost.is_null())
        missing = table.filter(lost.is_not_null()).with_columns(reason=lost.drop_nulls())
        turns = None
        if each_part:
            counts = np.ones(len(kept), dtype=np.int64)
            for places, _, _ in loaded.values():
                counts = np.maximum(counts, [places.get(id, (0, 1))[1] for id in kept["id"]])
            turns = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            kept = kept[np.repeat(np.arange(len(kept)), counts)].with_columns(part=pl.Series(turns))
        frames = {
            name: _frames(kept["id"], turns, found, processor.settings[name], name)
            for name, found in loaded.items()
        }
        text = ragged(kept["source_ids"]) if processor.text.settings.sources else None
        source = SourceRows(text, frames, processor.task_numbers(kept["task"].to_list()))
        return Rows(kept, source, ragged(kept["target_ids"]), missing)


@dataclass(frozen=True)
class Rows:
    """Rows with their features, in the order of the table."""

    table: pl.DataFrame
    source: SourceRows
    target: Ragged
    missing: pl.DataFrame
    """Rows of the table's kind, with the reason why they are not in it."""


Places = dict[str, tuple[int, int]]
"""Id to the number of its first part, and how many it has."""


def _load_media(folder: str, name: str, shards: Sequence[str]) -> tuple[Places, Any, np.ndarray]:
    """Where each id's parts are, the values (frames, features) of all, and the parts' offsets."""
    paths = [Path(folder) / "rows" / shard for shard in shards]
    tables = [parquet.read_table(path) for path in paths if path.exists()]
    width = load_settings(Path(folder) / name, name).features
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
    """Frames of rows by id; with `turns`, of one part of each."""
    places, values, offsets = loaded
    found = [places.get(id, (0, 0)) for id in ids]
    first = np.array([place for place, _ in found], dtype=np.int64)
    counts = np.array([count for _, count in found], dtype=np.int64)
    if turns is not None:
        first = first + turns % np.maximum(counts, 1)
        counts = np.minimum(counts, 1)
    return Frames(values, offsets, first, counts, settings, MEDIA[name])
