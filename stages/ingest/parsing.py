"""First step of ingest: parses a piece of a file into rows, cut by the hash of their source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from model.modalities.known import MEDIA, MODALITIES
from pipelines.running.beam_jobs import Ticks
from pipelines.store.shared import SharedPath
from pipelines.store.sources import TooLargeError, read_whole
from stages.ingest.errors import RowError
from stages.ingest.formats import UNREADABLE, changed, parse
from stages.ingest.grouping import Keys
from stages.ingest.opened import Parsed, Unit, Values
from stages.ingest.units import shown_name
from stages.rows.batches import BatchFile
from stages.rows.files import sizes_of
from stages.rows.rejects import EXCERPT, Reject, RejectFile
from stages.rows.shards import content_hash

CHUNK_ROWS, CHUNK_BYTES = 8_000, 16_000_000
"""Rows, and bytes of content in them, that are held as Python objects: these take many times the
size of a table."""
HELD_BYTES = 32_000_000
"""Bytes of tables that are held before they are written."""
EXAMPLES = 3
"""Rejects that an outcome tells, for a failure to show."""


@dataclass(frozen=True)
class ParsedUnit:
    """What became of a piece of a file."""

    read: int
    rejected: dict[str, int]
    batches: list[int]
    """The bucket of each batch in the unit's file."""
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    missing: list[str] = field(default_factory=list)
    """Names of files that rows name and that are not there."""
    unreadable: list[str] = field(default_factory=list)
    """Where a file could not be read any further, and why."""
    files: dict[str, int] = field(default_factory=dict)
    """See `stages.rows.files.sizes_of`."""
    examples: list[list[str]] = field(default_factory=list)
    """Reason and position with detail of the first rejects of each reason."""


@dataclass
class _Held:
    """Rows as Python has them, by column."""

    columns: dict[str, list[Any]]
    count: int = 0
    bytes: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        for name, values in self.columns.items():
            value = row.get(name)
            values.append(value)
            self.bytes += len(value) if isinstance(value, (str, bytes)) else 8
        self.count += 1


class Parsing:
    """The function that turns a unit into rows and rejects."""

    def __init__(
        self,
        folder: SharedPath,
        buckets: int,
        shards: int,
        task: str,
        keys: Keys,
        labels: Sequence[str],
        max_file_bytes: int,
    ) -> None:
        self.folder, self.buckets, self.shards = folder, buckets, shards
        self.task, self.keys, self.labels = task, keys, frozenset(labels)
        self.max_file_bytes = max_file_bytes

    def path(self, unit: Unit) -> SharedPath:
        return self.folder / f"parsed-{unit.name}.arrow"

    def rejects(self, unit: Unit) -> SharedPath:
        return self.folder / f"rejects-1-{unit.name}.arrow"

    def __call__(self, unit: Unit, ticks: Ticks) -> ParsedUnit:
        media = media_of(unit)
        schema = schema_of(unit)
        rows = BatchFile(self.path(unit).here)
        rejects = RejectFile(self.rejects(unit).here, self.shards)
        missing: list[str] = []
        unreadable: list[str] = []
        held, tables = _Held({name: [] for name in schema}), list[pl.DataFrame]()
        read = 0

        def write(everything: bool) -> None:
            nonlocal held
            if held.count:
                tables.append(pl.DataFrame(held.columns, schema=schema))
                held = _Held({name: [] for name in schema})
            if tables and (everything or sum(t.estimated_size() for t in tables) > HELD_BYTES):
                table = pl.concat(tables)
                tables.clear()
                rows.add_parted(table, bucket_of(table["group"], self.buckets))

        for parsed in parse(unit):
            read += 1
            position = parsed.position or f"{unit.shown}:{parsed.line}"
            if parsed.reason == UNREADABLE:
                unreadable.append(f"{position}: {parsed.detail}")
            try:
                held.add(self.row(unit, parsed, media, position, missing))
            except RowError as error:
                shown = [v[:EXCERPT] for v in parsed.values.values() if isinstance(v, str)]
                rejects.add(
                    Reject(
                        position=position,
                        stage="ingest",
                        reason=error.reason,
                        detail=error.detail,
                        excerpt=" | ".join(shown),
                    )
                )
            if held.count >= CHUNK_ROWS or held.bytes >= CHUNK_BYTES:
                write(everything=False)
        write(everything=True)
        ticks(max(1, unit.bytes))
        keys, others = rows.close(), rejects.close()
        return ParsedUnit(
            read,
            rejects.counts,
            keys,
            others,
            missing,
            unreadable,
            sizes_of(self.path(unit), self.rejects(unit)),
            [[reason, example] for reason, example in rejects.examples(EXAMPLES)],
        )

    def row(
        self, unit: Unit, parsed: Parsed, media: Sequence[str], position: str, missing: list[str]
    ) -> dict[str, Any]:
        """The columns of a row. Raises `RowError`."""
        if parsed.reason is not None:
            raise RowError(parsed.reason, parsed.detail)
        values = changed(parsed.values, unit)
        check(values, unit.reject, self.labels)
        digests = [self.load(name, values, unit, parsed.position, missing) for name in media]
        text, target = str(values.get("text") or ""), str(values["target"])
        source = [text, *digests]
        return {
            **unit.constants,
            **values,
            **self.judged(unit, values),
            "text": values.get("text") or None,
            "id": values.get("id") or content_hash(self.task, *source, target),
            "task": self.task,
            "split": "train" if unit.extra else unit.split,
            "position": position,
            "source": content_hash(*source),
            "group": self.keys.group(text, digests),
            "number": unit.number,
            "line": parsed.line,
        }

    def judged(self, unit: Unit, values: Values) -> dict[str, str | None]:
        """What the judges say of a row. Raises `RowError`."""
        known = {**unit.constants, **values}
        try:
            return {
                name: judge.judge(str(known.get(judge.column) or ""))
                for name, judge in unit.judges.items()
            }
        except ValueError as error:
            raise RowError("judge failed", str(error)) from error

    def load(
        self, name: str, values: Values, unit: Unit, own: str | None, missing: list[str]
    ) -> str:
        """A digest of the picture or sound of a row, "" if it has none.

        Bytes stay in the row; of a file, only the URL and the sha256 do, and the file is read again
        when the row is placed, so that files are not sent between workers.

        Args:
            own: the name of the file that is the row, if the row is one.
        """
        value = values.get(name) or None
        values[name] = None
        if value is None:
            return ""
        if isinstance(value, bytes):
            values[name] = value
            return content_digest_of(value)
        # Files that are rows are those of the user's own pattern.
        url = value if unit.format == "files" else unit.places.url(value)
        try:
            data = read_whole(url, self.max_file_bytes)
        except FileNotFoundError as error:
            missing.append(own or shown_name(unit, value))
            raise RowError(f"{name} file not found", value) from error
        except TooLargeError as error:
            raise RowError(f"{name} file too large", f"{value}: {error}") from error
        values[f"{name}_url"] = url
        values[f"{name}_name"] = own or shown_name(unit, value)
        values[f"{name}_sha256"] = hashlib.sha256(data).hexdigest()
        return content_digest_of(data)


def media_of(unit: Unit) -> list[str]:
    """The modalities, besides text, that a unit's rows have."""
    names = {*unit.columns, *(["image"] if unit.pixels else [])}
    return [name for name in MEDIA if name in names]


def schema_of(unit: Unit) -> dict[str, Any]:
    """The columns of a unit's rows."""
    media = media_of(unit)
    own = ["id", "task", "split", "position", "source", "group", "text"]
    files = [f"{name}_{fact}" for name in media for fact in ("url", "name", "sha256")]
    return {
        **dict.fromkeys([*unit.columns, *unit.constants, *unit.judges, *own, *files], pl.String),
        **dict.fromkeys(media, pl.Binary),
        "number": pl.Int64,
        "line": pl.Int64,
    }


def bucket_of(groups: pl.Series, buckets: int) -> pl.Series:
    """The bucket of each group: a range of hashes, so that buckets are in the order of groups."""
    first = groups.str.slice(0, 8).str.to_integer(base=16)
    return (first.cast(pl.UInt64) * buckets) // 2**32


def content_digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def check(values: Values, patterns: Mapping[str, str], labels: frozenset[str]) -> None:
    """Raises `RowError` for a parsed row that cannot be a record."""
    if not (values.get("target") or "").strip():
        raise RowError("empty target")
    if not any(isinstance(values.get(name), bytes) for name in MEDIA):
        named = [str(values.get(name) or "").strip() for name in MODALITIES]
        if not any(named):
            raise RowError("empty text" if "text" in values else "empty source")
    for name, pattern in patterns.items():
        match = re.search(pattern, str(values.get(name) or ""))
        if match:
            raise RowError(f"{name} matches reject", f"{match[0]!r} matches {pattern}")
    if labels and values["target"] not in labels:
        raise RowError("target is no label", repr(values["target"]))


def total_buckets(units: Sequence[Unit], bytes_of_bucket: int) -> int:
    """How many buckets the rows are cut into: as many as keep each small. The records are the same
    for any number."""
    total = sum(unit.bytes for unit in units)
    return max(1, min(4096, total // bytes_of_bucket + 1))


def first_examples(outcomes: Sequence[ParsedUnit]) -> Iterator[str]:
    """The first rejects of each reason, as sentences."""
    shown: dict[str, int] = {}
    for outcome in outcomes:
        for reason, example in outcome.examples:
            shown[reason] = shown.get(reason, 0) + 1
            if shown[reason] <= EXAMPLES:
                yield f"{reason}: {example}"
