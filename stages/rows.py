"""Rows on disk: Parquet shards, and the rows that were rejected on the way.

A row belongs to shard `hash(id) mod shards` and stands there sorted by id, so that every runner
and every number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from pipelines.store import Artifact

REJECTED_SCHEMA = {
    "id": pl.String,
    "position": pl.String,
    "stage": pl.String,
    "reason": pl.String,
    "detail": pl.String,
    "excerpt": pl.String,
}
SPLITS = ("train", "valid", "test")
MODALITIES = ("text", "image", "audio")
MEDIA_GROUP, ROW_GROUP = 32, 16_000
"""Rows with pictures or sounds that are read at a time."""
EXCERPT = 200
"""Characters of a rejected row that are kept for a person to see."""


def content_hash(*parts: str) -> str:
    """32 hex digits over the parts; the same on every machine and for ever."""
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
    """Writes Parquet whole or not at all. Rows stand in groups, so that they can be read some at a
    time; those with files in them in small ones, and uncompressed: most such files are already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    if {"image", "audio"} & set(table.columns):
        table.write_parquet(temporary, compression="uncompressed", row_group_size=MEDIA_GROUP)
    else:
        table.write_parquet(temporary, compression="zstd", row_group_size=ROW_GROUP)
    temporary.replace(path)


def write_records(table: pl.DataFrame, output: Path, shards: int) -> None:
    """Writes the `rows/` shards of a records artifact.

    `table` has `id`, `split`, `task`, `target`, `position`, any of `text`, `image` and `audio`,
    and free columns; `modalities` is added.
    """
    table = with_modalities(table)
    index = pl.Series("shard", [shard_of(id, shards) for id in table["id"]], dtype=pl.Int64)
    for shard in range(shards):
        part = table.filter(index == shard).sort("id")
        write_table(part, output / "rows" / f"{shard_name(shard, shards)}.parquet")


def with_modalities(table: pl.DataFrame) -> pl.DataFrame:
    """Adds what stands in each row's source, as "text", "image+audio" and so on."""
    there = [
        pl.when(pl.col(name).is_not_null()).then(pl.lit(name))
        for name in MODALITIES
        if name in table.columns
    ]
    joined = pl.concat_list(there).list.drop_nulls().list.join("+")
    return table.with_columns(joined.alias("modalities"))


def count_splits(output: Path) -> dict[str, int]:
    """Rows of each split in the `rows/` shards of a folder."""
    shards = sorted(output.glob("rows/*.parquet"))
    found = dict(pl.scan_parquet(shards).group_by("split").len().collect().iter_rows())
    return {name: int(found.get(name, 0)) for name in SPLITS}


def task_facts(
    output: Path, task: str, languages: Mapping[Any, str], labels: bool | list[str]
) -> dict[str, Any]:
    """What the stages downstream must know of a task, from its rows in a folder.

    Args:
        labels: those of a classification, or true for the targets of the training split.
    """
    rows = pl.scan_parquet(sorted(output.glob("rows/*.parquet"))).filter(task=task)
    if labels is True:
        found = rows.filter(split="train").select("target").unique().sort("target").collect()
        labels = found["target"].to_list()
    modalities = rows.select("modalities").unique().sort("modalities").collect()["modalities"]
    return {
        "languages": dict(languages),
        "labels": labels or [],
        "modalities": modalities.to_list(),
    }


def joined_tasks(artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """The tasks of several records together. Raises `ValueError` where they contradict."""
    tasks: dict[str, Any] = {}
    for artifact in artifacts:
        for name, facts in artifact.properties["tasks"].items():
            if name not in tasks:
                tasks[name] = dict(facts)
                continue
            for key in ("languages", "labels"):
                if tasks[name][key] != facts[key]:
                    raise ValueError(
                        f"task {name!r} has {key} {tasks[name][key]} in one set of records and "
                        f"{facts[key]} in another; give one of them another task:"
                    )
            both = {*tasks[name]["modalities"], *facts["modalities"]}
            tasks[name]["modalities"] = sorted(both)
    return dict(sorted(tasks.items()))


def row_shards(artifact: Artifact) -> list[Path]:
    return artifact.files("rows/*.parquet")


def link_files(source: Path, target: Path) -> None:
    """Puts finished files of `scratch` into the output, and leaves them where a resume needs them.

    Hard links where the file system has them, copies elsewhere.
    """
    target.mkdir(parents=True, exist_ok=True)
    # What begins with a dot was half-written when a run was killed.
    for path in sorted(path for path in source.iterdir() if not path.name.startswith(".")):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def read_rows(artifact: Artifact, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """All rows of an artifact, in the order of its shards."""
    selected = list(columns) if columns is not None else None
    tables = [pl.read_parquet(path, columns=selected) for path in row_shards(artifact)]
    return pl.concat(tables, how="diagonal")


def rejected_rows(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """A table of rejects; text that is not valid Unicode is shown with its bytes escaped."""
    listed = [{key: _shown(row.get(key), key) for key in REJECTED_SCHEMA} for row in rows]
    return pl.DataFrame(listed, schema=REJECTED_SCHEMA, orient="row")


def _shown(value: Any, key: str) -> str | None:
    if value is None:
        return None
    text = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text[:EXCERPT] if key in ("excerpt", "detail") else text


def as_rejected(table: pl.DataFrame, stage: str) -> pl.DataFrame:
    """Rows with a `reason` column, and otherwise of the records' schema, as rejects."""
    return rejected_rows(
        {
            "id": row["id"],
            "position": row["position"],
            "stage": stage,
            "reason": row["reason"],
            "detail": f"{len(row.get('text') or '')} and {len(row['target'])} characters",
            "excerpt": f"{(row.get('text') or '')[: EXCERPT // 2]} | "
            f"{row['target'][: EXCERPT // 2]}",
        }
        for row in table.iter_rows(named=True)
    )


def to_arrow(table: pl.DataFrame) -> bytes:
    """A table as one Beam element: the bytes of an Arrow IPC file."""
    stream = io.BytesIO()
    table.write_ipc(stream)
    return stream.getvalue()


def from_arrow(tables: Iterable[bytes]) -> pl.DataFrame:
    """Tables from `to_arrow` under one another; a column that one of them lacks is null there."""
    return pl.concat([pl.read_ipc(io.BytesIO(table)) for table in tables], how="diagonal")


def write_rejected(tables: Sequence[pl.DataFrame], output: Path, shards: int) -> dict[str, int]:
    """Writes the `rejected/` shards of an artifact and counts them by reason."""
    everything = pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *tables])
    everything = everything.sort("position", "id", "reason", "detail", nulls_last=True)
    keys = [
        f"{row[0] or ''} {row[1] or ''}" for row in everything.select("position", "id").iter_rows()
    ]
    index = pl.Series("shard", [shard_of(key, shards) for key in keys], dtype=pl.Int64)
    for shard in range(shards):
        part = everything.filter(index == shard)
        write_table(part, output / "rejected" / f"{shard_name(shard, shards)}.parquet")
    counts = everything.group_by("reason").len().sort("reason")
    return {str(reason): int(count) for reason, count in counts.iter_rows()}


def gather_rejected(paths: Sequence[Path]) -> pl.DataFrame:
    """Rejects that were written to files of their own."""
    return pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *map(pl.read_parquet, paths)])


def read_rejected(artifact: Artifact) -> pl.DataFrame:
    tables = [pl.read_parquet(path) for path in artifact.files("rejected/*.parquet")]
    empty = pl.DataFrame(schema=REJECTED_SCHEMA)
    return pl.concat([empty, *tables]).sort("position", "id", nulls_last=True)


def check_rejected(
    stage: str, total: int, rejected: dict[str, int], limit: float, lenient: Sequence[str] = ()
) -> None:
    """Raises `ValueError` where more than the share `limit` is bad; `lenient` reasons are not."""
    bad = sum(count for reason, count in rejected.items() if reason not in lenient)
    if total and bad > limit * total:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise ValueError(
            f"{stage} rejected {bad} of {total} rows, more than max_rejected: {limit} allows "
            f"({reasons}); mend the data, or raise max_rejected"
        )
