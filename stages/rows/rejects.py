"""Rows that stages rejected, with their position and the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from pipelines.store.shared import SharedPath
from stages.rows.batches import Batches, BatchFile
from stages.rows.shards import TableFile, shard_name, shard_of, table_groups

if TYPE_CHECKING:
    from pipelines.stage import Context
    from pipelines.store.artifacts import Artifact


REJECTED_SCHEMA = {
    "id": pl.String,
    "position": pl.String,
    "stage": pl.String,
    "reason": pl.String,
    "detail": pl.String,
    "excerpt": pl.String,
}


MOST_EXAMPLES = 12
EXCERPT = 200
"""Characters of a rejected row that are kept for a person to see."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A row that a stage left out."""

    id: str | None = None
    """None where it was rejected before it had one."""
    position: str
    """File and line."""
    stage: str
    reason: str
    """Counted; the same for all rows with the same fault."""
    detail: str | None = None
    """What is wrong with this one."""
    excerpt: str | None = None


def _rejected_rows(rejects: Iterable[Reject]) -> pl.DataFrame:
    """A table of rejects; text that is not valid Unicode is shown with its bytes escaped."""
    rows = [
        {name: _shown(getattr(reject, name), name) for name in REJECTED_SCHEMA}
        for reject in rejects
    ]
    return pl.DataFrame(rows, schema=REJECTED_SCHEMA, orient="row")


def _shown(value: str | None, name: str) -> str | None:
    if value is None:
        return None
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text[:EXCERPT] if name in ("excerpt", "detail") else text


def _cut(value: str | None) -> str | None:
    return value and value[:EXCERPT]


PARTS = 64
"""Parts that all shards of rejects have together, each of which is sorted in memory."""
CHUNK = 2_000
"""Rejects that are held as Python objects."""


class RejectFile:
    """Collects the rejects of a piece of work, cut by the shard in which they will be; counts them
    by reason."""

    def __init__(self, path: Path, shards: int) -> None:
        self.file, self.parts = BatchFile(path), shards * parts_of(shards)
        self.counts: dict[str, int] = {}
        self.first: dict[str, list[str]] = {}
        self.held: list[Reject] = []

    def add(self, reject: Reject) -> None:
        # A row, and what is said of it, can have megabytes, and many are held.
        reject = replace(
            reject,
            id=_cut(reject.id),
            detail=_cut(reject.detail),
            excerpt=_cut(reject.excerpt),
        )
        shown = self.first.setdefault(reject.reason, [])
        if len(shown) < MOST_EXAMPLES:
            shown.append(f"{reject.position}: {reject.detail or reject.excerpt or ''}")
        self.held.append(reject)
        if len(self.held) >= CHUNK:
            self._write()

    def add_rows(self, table: pl.DataFrame, stage: str) -> None:
        """Adds rows with the records' schema and a `reason` column."""
        for part in table.iter_slices(CHUNK):
            self._write(_as_rejected(part, stage))

    def examples(self, count: int) -> Iterator[tuple[str, str]]:
        """Reason and place of the first rejects of each reason."""
        for reason, shown in self.first.items():
            yield from ((reason, example) for example in shown[:count])

    def _write(self, table: pl.DataFrame | None = None) -> None:
        if table is None:
            table, self.held = _rejected_rows(self.held), []
        for reason, count in table.group_by("reason").len().sort("reason").iter_rows():
            self.counts[reason] = self.counts.get(reason, 0) + count
        names = table.select("position", "id").iter_rows()
        keys = [shard_of(f"{row[0] or ''} {row[1] or ''}", self.parts) for row in names]
        self.file.add_parted(table, pl.Series(keys, dtype=pl.Int64))

    def close(self) -> list[int]:
        """See `BatchFile.close`."""
        self._write()
        return self.file.close()


def parts_of(shards: int) -> int:
    """Parts of each shard of rejects."""
    return max(1, PARTS // shards)


def gather_rejects(files: Mapping[SharedPath, Sequence[int]], output: Path, shards: int) -> None:
    """Writes the `rejected/` shards of an artifact from the files of its pieces of work, whose
    batches have these keys: part by part, each sorted by position."""
    batches, parts_of_shard = Batches(files), parts_of(shards)
    for shard in range(shards):
        first = shard * parts_of_shard
        parts = (batches.read(first + part) for part in range(parts_of_shard))
        path = output / "rejected" / f"{shard_name(shard, shards)}.parquet"
        order = ["position", "id", "reason", "detail"]
        with TableFile(path, pl.Schema(REJECTED_SCHEMA)) as written:
            for part in parts:
                if part is not None:
                    written.add(part.sort(order, nulls_last=True))


def _as_rejected(table: pl.DataFrame, stage: str) -> pl.DataFrame:
    """Rows with the records' schema and a `reason` column, as rejects."""
    return _rejected_rows(
        Reject(
            id=row["id"],
            position=row["position"],
            stage=stage,
            reason=row["reason"],
            detail=f"{len(row.get('text') or '')} and {len(row['target'])} characters",
            excerpt=f"{(row.get('text') or '')[: EXCERPT // 2]} | {row['target'][: EXCERPT // 2]}",
        )
        for row in table.iter_rows(named=True)
    )


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Rejects of all pieces of work, by reason."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))


def write_rejects(rejects: Iterable[Reject], context: Context, shards: int) -> dict[str, int]:
    """Writes the `rejected/` shards of a stage that works in one piece; counts them by reason."""
    path = context.scratch / "rejects.arrow"
    file = RejectFile(path, shards)
    for reject in rejects:
        file.add(reject)
    gather_rejects({SharedPath.of(path): file.close()}, context.output, shards)
    return summed([file.counts])


def read_rejects(artifact: Artifact) -> Iterator[pl.DataFrame]:
    """The rejects of an artifact, some at a time."""
    for path in artifact.files("rejected/*.parquet"):
        yield from table_groups(path)


def check_rejected(
    stage: str,
    total: int,
    rejected: dict[str, int],
    limit: float,
    lenient: Sequence[str] = (),
    examples: Sequence[str] = (),
) -> None:
    """Raises `ValueError`, with examples, if more than the share `limit` is bad; `lenient` reasons
    are not bad."""
    bad = sum(count for reason, count in rejected.items() if reason not in lenient)
    if total and bad > limit * total:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise ValueError(
            f"{stage} rejected {bad} of {total} rows, more than max_rejected: {limit} allows "
            f"({reasons}); correct the data, or raise max_rejected"
            + "".join(f"\n  {example}" for example in examples[:MOST_EXAMPLES])
        )
