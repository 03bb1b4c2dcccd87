"""Rows on disk: Parquet shards.

A row belongs to shard `hash(id) mod shards`, and a shard is sorted by id, so that every runner and
every number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl
from pyarrow import parquet

from model.modalities.known import MEDIA, MODALITIES
from pipelines.store.shared import SharedPath
from stages.rows.files import put_in_place, temporary

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact


SPLITS = ("train", "valid", "test")


MEDIA_GROUP, ROW_GROUP = 32, 16_000
"""Rows that are read at a time: those with pictures, sounds and so on, and those without."""


PROBE = 64 * 1024
"""Bytes that are written to ask the system what is wrong with a disk."""


def content_hash(*parts: str) -> str:
    """A hash of the parts as 32 hex digits; always the same, on every machine."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        hashed.update(len(encoded).to_bytes(8, "big") + encoded)
    return hashed.hexdigest()


def shard_of(id: str, shards: int) -> int:
    return int(content_hash(id)[:8], 16) % shards


def shard_name(index: int, shards: int) -> str:
    return f"{index:05d}-of-{shards:05d}"


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Writes Parquet atomically, in row groups, so that some rows can be read at a time. Rows with
    files in them are in small groups, and uncompressed: most such files are compressed already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = temporary(path)
    if MEDIA.keys() & set(table.columns):
        write_parquet(table, written, compression="uncompressed", row_group_size=MEDIA_GROUP)
    else:
        write_parquet(table, written, compression="zstd", row_group_size=ROW_GROUP)
    put_in_place(written, path)


def write_parquet(table: pl.DataFrame, path: Path, **options: Any) -> None:
    """As Polars does it. Raises `OSError` for a disk that is full: Polars loses what the system
    said where it writes the header of a page, and then speaks of a damaged file."""
    try:
        table.write_parquet(path, **options)
    except pl.exceptions.ComputeError:
        with path.open("ab", buffering=0) as file:
            for _ in range(3):  # the first may still find some room
                file.write(bytes(PROBE))
        raise


def table_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """The row groups of a Parquet file, one after the other; one without rows if there is none."""
    with parquet.ParquetFile(path) as file:
        chosen = None if columns is None else list(columns)
        for number in range(file.num_row_groups):
            table = pl.from_arrow(file.read_row_group(number, chosen))
            assert isinstance(table, pl.DataFrame)
            yield table
        if not file.num_row_groups:
            table = pl.from_arrow(file.schema_arrow.empty_table())
            assert isinstance(table, pl.DataFrame)
            yield table if chosen is None else table.select(chosen)


class TableFile:
    """Writes Parquet group by group, atomically; used in a `with` statement."""

    def __init__(
        self, path: Path, schema: pl.Schema | None = None, compression: str = "zstd"
    ) -> None:
        """
        Args:
            schema: that of the first table if it is not given; there must then be one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.temporary = path, temporary(path)
        self.schema, self.compression = schema, compression
        self.writer: parquet.ParquetWriter | None = None

    def __enter__(self) -> Self:
        if self.schema is not None:
            self.add(self.schema.to_frame())
        return self

    def add(self, table: pl.DataFrame) -> None:
        """Adds a row group; a column that is missing is null, one that is not known is left out."""
        self.schema = self.schema or table.schema
        for name, kind in self.schema.items():
            if name not in table.columns:
                table = table.with_columns(pl.lit(None, kind).alias(name))
        chosen = table.select(*self.schema).to_arrow(compat_level=pl.CompatLevel.oldest())
        if self.writer is None:
            self.writer = parquet.ParquetWriter(
                self.temporary, chosen.schema, compression=self.compression
            )
        if len(chosen):
            self.writer.write_table(chosen)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        if kind is None:
            put_in_place(self.temporary, self.path)


def record_file(path: Path, media: Sequence[str], free: Sequence[str]) -> TableFile:
    """A shard of records to write.

    Args:
        media: the modalities that rows have, except text.
        free: the columns of the user's own.
    """
    texts = ["id", "split", "task", "modalities", "text", "target", "position", *free]
    order = ["id", "split", "task", "modalities", "text", *media, "target", "position", *free]
    schema = pl.Schema({name: pl.String if name in texts else pl.Binary for name in order})
    return TableFile(path, schema, "none" if media else "zstd")


def write_records(table: pl.DataFrame, output: Path, shards: int) -> None:
    """Writes the `rows/` shards of a records artifact.

    `table` has `id`, `split`, `task`, `target`, `position`, any of the columns of
    modalities, and free ones; `modalities` is added.
    """
    table = with_modalities(table)
    index = pl.Series("shard", [shard_of(id, shards) for id in table["id"]], dtype=pl.Int64)
    for shard in range(shards):
        part = table.filter(index == shard).sort("id")
        write_table(part, output / "rows" / f"{shard_name(shard, shards)}.parquet")


def with_modalities(table: pl.DataFrame) -> pl.DataFrame:
    """Adds the modalities of each row's source, as "text", "image+audio" and so on."""
    present = [
        pl.when(pl.col(name).is_not_null()).then(pl.lit(name))
        for name in MODALITIES
        if name in table.columns
    ]
    joined = pl.concat_list(present).list.drop_nulls().list.join("+")
    return table.with_columns(joined.alias("modalities"))


def count_splits(output: Path) -> dict[str, int]:
    """Rows of each split in the `rows/` shards of a folder."""
    shards = sorted(output.glob("rows/*.parquet"))
    grouped = pl.scan_parquet(shards).group_by("split").len()
    counts = dict(grouped.collect(engine="streaming").iter_rows())
    return {name: int(counts.get(name, 0)) for name in SPLITS}


def row_shards(artifact: Artifact) -> list[Path]:
    return artifact.files("rows/*.parquet")


def link_files(source: SharedPath, target: Path) -> None:
    """Puts finished files of `scratch` into the output, and leaves them where a resume needs them.

    Makes hard links if the file system has them, otherwise copies.
    """
    target.mkdir(parents=True, exist_ok=True)
    folder = source.whole()
    # A file whose name begins with a dot was half-written when a run was killed.
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def read_rows(artifact: Artifact, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """All rows of an artifact, in the order of its shards."""
    selected = list(columns) if columns is not None else None
    tables = [pl.read_parquet(path, columns=selected) for path in row_shards(artifact)]
    return pl.concat(tables, how="diagonal")


def first_rows(artifact: Artifact, kinds: Sequence[str], count: int) -> pl.DataFrame:
    """The first rows by id of every kind, in the order of ids, which are hashes unless the user has
    own ones: a fair sample.

    Args:
        kinds: the columns in which rows of a kind have the same.
    """
    chosen = pl.DataFrame()
    for group in (group for path in row_shards(artifact) for group in table_groups(path)):
        chosen = pl.concat([chosen, group], how="diagonal_relaxed").sort("id", maintain_order=True)
        chosen = chosen.filter(pl.int_range(pl.len()).over(kinds) < count)
    return chosen


def to_arrow(table: pl.DataFrame) -> bytes:
    """A table as one Beam element: the bytes of an Arrow IPC file."""
    stream = io.BytesIO()
    table.write_ipc(stream)
    return stream.getvalue()


def from_arrow(tables: Iterable[bytes]) -> pl.DataFrame:
    """Concatenates tables from `to_arrow`; a column that one of them lacks is null there."""
    return pl.concat([pl.read_ipc(io.BytesIO(table)) for table in tables], how="diagonal")
