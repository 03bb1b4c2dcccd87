"""What the stages of all modalities except text share: shards of records in, of features out.

A shard is read a few files at a time, so that memory holds a group of rows and not the shard. Files
that cannot be used are rejected with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from model.modalities.media import MediaError, MediaSettings, Row
from pipelines.running.beam_jobs import Ticks
from pipelines.stage import Context, Inputs, Result
from pipelines.store.shared import SharedPath
from stages.features.moments import STEP, Sums, merged, moments, sums_of
from stages.rows.files import put_in_place, sizes_of, temporary
from stages.rows.pieces import RecordShard, record_shards
from stages.rows.rejects import Reject, RejectFile
from stages.rows.shards import MEDIA_GROUP

Parts = Sequence[np.ndarray]
"""The features (frames, features) of one row: one array, or one for each variant or piece."""


SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("values", pa.large_binary())])
"""`values` are a part's numbers as they are in memory: Parquet has no 8-bit type, and
writing lists of numbers takes longer than decoding a picture."""


class Worker(Protocol):
    """What a modality does with a group of files. Holds only data that can be sent to workers."""

    modality: str

    def process(self, rows: Sequence[Row]) -> Iterator[Parts | MediaError]:
        """The parts of every row, or why there are none."""


@dataclass(frozen=True)
class MediaShard:
    """What became of a shard."""

    taken: int
    """Rows that have the modality."""
    rows: int
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    rejected: dict[str, int]
    """Reason to number."""
    sums: Sums
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class MediaSteps:
    """The function that turns a shard of records into a shard of features."""

    def __init__(
        self, worker: Worker, groups: int, shards: int, scratch: SharedPath, step: int = STEP
    ) -> None:
        self.worker, self.groups, self.shards, self.step = worker, groups, shards, step
        self.rows, self.folder = scratch / "rows", scratch / "rejects"

    def rejects(self, shard: RecordShard) -> SharedPath:
        return self.folder / f"{shard.name}.arrow"

    def __call__(self, shard: RecordShard, ticks: Ticks) -> MediaShard:
        modality = self.worker.modality
        path = self.rows / f"{shard.name}.parquet"
        path.here.parent.mkdir(parents=True, exist_ok=True)
        written = temporary(path.here)
        rejects = RejectFile(self.rejects(shard).here, self.shards)
        taken, sums = 0, merged([])
        # Compression of pixels and decibels saves too little space to be worth its time.
        with parquet.ParquetWriter(
            written, SCHEMA, compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            for rows in read_groups(shard, modality):
                accepted: list[tuple[str, str, Parts]] = []
                for row, outcome in zip(rows, self.worker.process(rows), strict=True):
                    if isinstance(outcome, MediaError):
                        rejects.add(
                            Reject(
                                id=row["id"],
                                position=row["position"],
                                stage=modality,
                                reason=outcome.reason,
                                detail=outcome.detail,
                            )
                        )
                        continue
                    accepted.append((row["id"], row["split"], outcome))
                taken += len(rows)
                if accepted:
                    values = np.concatenate([part for _, _, parts in accepted for part in parts])
                    writer.write_table(_table(accepted, values))
                    trained = [split == "train" for _, split, parts in accepted for _ in parts]
                    if not all(trained):
                        lengths = [len(part) for _, _, parts in accepted for part in parts]
                        values = values[np.repeat(trained, lengths)]
                    sums = merged([sums, sums_of(values, self.groups, self.step)])
                ticks(len(rows))
        put_in_place(written, path.here)
        batches = rejects.close()
        files = sizes_of(path, self.rejects(shard))
        left = taken - sum(rejects.counts.values())
        return MediaShard(taken, left, batches, rejects.counts, sums, files)


def _table(accepted: Sequence[tuple[str, str, Parts]], values: np.ndarray) -> pa.Table:
    """The parts of some rows, whose values (frames, features) are one after the other."""
    ids = [id for id, _, parts in accepted for _ in parts]
    splits = [split for _, split, parts in accepted for _ in parts]
    offsets = np.cumsum([0, *(p.nbytes for _, _, parts in accepted for p in parts)], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ids), buffers)
    return pa.table([pa.array(ids), pa.array(splits), column], schema=SCHEMA)


def read_groups(shard: RecordShard, modality: str) -> Iterator[list[Row]]:
    """Rows of a shard of records that have the modality, a group at a time; the file is a view of
    Arrow's memory, which stays valid as long as the row exists."""
    file = parquet.ParquetFile(Path(shard.path), memory_map=True)
    if modality not in file.schema_arrow.names:
        return
    names = ["id", "split", "position"]
    # A group at a time: whoever wrote them saw to it that none is too large.
    for batch in (
        batch
        for group in range(file.num_row_groups)
        for batch in file.iter_batches(MEDIA_GROUP, [group], [*names, modality])
    ):
        present = batch.filter(batch[modality].is_valid())
        if len(present):
            rows = present.select(names).to_pylist()
            files = (value.as_buffer() for value in present[modality])
            yield [{**row, modality: memoryview(f)} for row, f in zip(rows, files, strict=True)]


def run(
    context: Context,
    inputs: Inputs,
    worker: Worker,
    settings: MediaSettings,
    groups: int,
    max_rejected: float,
    step: int = STEP,
) -> Result:
    """All that such a stage does: features of every row, then their statistics.

    Args:
        groups: number of channels or mel bins; each has its own mean and deviation.
        step: resolution of the sums for them, see `stages.features.moments`.
    """
    from pipelines.contracts.tasks import in_json
    from pipelines.store.files import write_json
    from stages.rows.rejects import check_rejected, gather_rejects, summed
    from stages.rows.shards import link_files
    from stages.rows.tasks import joined_tasks

    modality = worker.modality
    shared = context.beam.shared
    shards = record_shards(inputs["records"], shared)
    steps = MediaSteps(worker, groups, len(shards), shared.path(context.scratch), step)
    total = sum(shard.rows for shard in shards)
    made = context.beam.map(
        modality, shards, steps, MediaShard, context.scratch, total=total, unit="rows"
    )
    taken = sum(shard.taken for shard in made)
    if not taken:
        raise ValueError(f"no row of the records has {modality}")
    link_files(steps.rows, context.output / "rows")
    files = {
        steps.rejects(shard): outcome.rejects for shard, outcome in zip(shards, made, strict=True)
    }
    gather_rejects(files, context.output, len(shards))
    rejected = summed(outcome.rejected for outcome in made)
    check_rejected(context.stage, taken, rejected, max_rejected)
    sums = context.beam.combine(
        [shard.sums for shard in made], merged, context.scratch / "sums.json"
    )
    if not any(sums[0]):
        raise ValueError("there are no training rows to measure mean and deviation on")
    mean, deviation = moments(sums, step)
    written = settings.model_copy(update={"mean": mean, "deviation": deviation})
    folder = context.output / modality
    folder.mkdir(exist_ok=True)
    write_json(folder / "settings.json", written.model_dump(mode="json"))
    return Result(
        rows_in=taken,
        rows=sum(shard.rows for shard in made),
        rejected=rejected,
        properties={"modality": modality, "tasks": in_json(joined_tasks(inputs["records"]))},
    )
