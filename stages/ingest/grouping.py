"""First job of ingest: parses rows, and groups them by source, where duplicates are dropped.

Elements between the steps are Arrow tables of many rows.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import polars as pl

from model.modalities.known import MEDIA, MODALITIES
from pipelines.store.sources import read_whole
from stages.ingest.formats import RowError, Unit, Values, media_url, parse
from stages.ingest.options import Deduplicate
from stages.rows.rejects import Reject, as_rejected, rejected_rows
from stages.rows.shards import content_hash, from_arrow, to_arrow, write_table

DUPLICATES = ("duplicate", "near duplicate")
"""Reject reasons that do not count as bad data."""


def parse_job(pipeline: Any, units: Sequence[Unit], grouping: Grouping) -> Any:
    return (
        pipeline
        | "Units" >> beam.Create(units)
        | "Parse" >> beam.FlatMap(grouping.parse)
        | "By source" >> beam.GroupByKey()
        | "Deduplicate" >> beam.Map(grouping.deduplicate)
    )


class Grouping:
    """First job: parse rows, and drop duplicates among those of one source."""

    def __init__(
        self,
        shards: int,
        task: str,
        duplicates: Deduplicate,
        own_ids: bool,
        labels: Sequence[str],
        max_file_bytes: int,
        folder: str,
    ) -> None:
        self.shards, self.task, self.duplicates = shards, task, duplicates
        self.own_ids, self.labels = own_ids, frozenset(labels)
        self.max_file_bytes, self.folder = max_file_bytes, folder

    def parse(self, unit: Unit) -> Iterator[tuple[int, bytes]]:
        """The rows of a piece of a file, one Arrow table for each bucket of sources."""
        extractors = {name: re.compile(pattern) for name, pattern in unit.extract.items()}
        refused = {name: re.compile(pattern) for name, pattern in unit.reject.items()}
        names = {*unit.columns, *(["image"] if unit.pixels else [])}
        media = [name for name in MEDIA if name in names]
        rows, rejects, read = [], [], 0
        for parsed in parse(unit):
            read += 1
            values = dict(parsed.values)
            position = parsed.position or f"{unit.shown}:{parsed.line}"
            reason, detail = parsed.reason, parsed.detail
            try:
                if reason is not None:
                    raise RowError(reason, detail)
                for name, pattern in extractors.items():
                    match = pattern.search(str(values.get(name) or ""))
                    values[name] = match[0].strip() if match else ""
                for name, replacements in unit.replace.items():
                    values[name] = replacement(name, values.get(name), replacements)
                check(values, refused, self.labels)
                digests = [self.load(name, values, unit.url) for name in media]
            except RowError as error:
                shown = [str(v) for v in values.values() if v is not None and type(v) is not bytes]
                rejects.append(
                    Reject(
                        position=position,
                        stage="ingest",
                        reason=error.reason,
                        detail=error.detail,
                        excerpt=" | ".join(shown),
                    )
                )
                continue
            text, target = str(values.get("text") or ""), str(values["target"])
            source = [text, *digests]
            key = normalized_key(text) if self.duplicates == "normalized" else text
            rows.append(
                {
                    **values,
                    "text": values.get("text") or None,
                    "id": values.get("id") or content_hash(self.task, *source, target),
                    "task": self.task,
                    "split": "train" if unit.extra else unit.split,
                    "position": position,
                    "source": content_hash(*source),
                    "group": content_hash(key, *source[1:]),
                    "number": unit.number,
                    "line": parsed.line,
                }
            )
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_table(rejected_rows(rejects), folder / f"rejected-0-{unit.number:06d}.parquet")
        (folder / f"read-{unit.number:06d}.count").write_text(str(read))
        schema = {"number": pl.Int64, "line": pl.Int64}
        own = ["id", "task", "split", "position", "source", "group", "text"]
        texts = [*unit.columns, *own, *(f"{name}_url" for name in media)]
        binary = dict.fromkeys(media, pl.Binary)
        columns = {**dict.fromkeys(texts, pl.String), **binary, **schema}
        table = pl.DataFrame(rows, schema=columns, orient="row")
        buckets = [int(group[:8], 16) % self.shards for group in table["group"]]
        for bucket in sorted(set(buckets)):
            yield bucket, to_arrow(table.filter(pl.Series(buckets, dtype=pl.Int64) == bucket))

    def load(self, name: str, values: Values, table: str) -> str:
        """A digest of the picture or sound of a row, "" if it has none.

        Bytes stay in the row; of a file, only the URL does, and the file is read again when the row
        is placed, so that files are not sent between workers.
        """
        value = values.get(name) or None
        values[name] = None
        if value is None:
            return ""
        if isinstance(value, bytes):
            values[name] = value
            return content_digest_of(value)
        url = media_url(table, value)
        try:
            data = read_whole(url, self.max_file_bytes)
        except FileNotFoundError as error:
            raise RowError(f"{name} file not found", value) from error
        except (OSError, ValueError) as error:
            raise RowError(f"{name} file cannot be read", f"{value}: {error}") from error
        values[f"{name}_url"] = url
        return content_digest_of(data)

    def deduplicate(self, keyed: tuple[int, Any]) -> str:
        """Writes one bucket without repeated pairs and without sources in two splits."""

        bucket, tables = keyed
        rank = {"test": 0, "valid": 1, "train": 2}
        ranked = pl.col("split").replace_strict(rank, default=None, return_dtype=pl.Int64)
        # Of repeated rows, one in test or valid is kept; otherwise the one that was read first.
        table = from_arrow(tables).sort(ranked.fill_null(1), "number", "line", maintain_order=True)
        # If files were given for each split, a source can be in two of them.
        best = ranked.min().over("group")
        reasons = [pl.when(ranked > best).then(pl.lit("source is in another split"))]
        if self.duplicates != "none":
            repeated = ~pl.struct("source", "target").is_first_distinct()
            reasons.append(pl.when(repeated).then(pl.lit("duplicate")))
        if self.duplicates == "normalized":
            pairs = table.select("group", "target").iter_rows()
            keys = [f"{group}{normalized_key(target)}" for group, target in pairs]
            near = ~pl.Series(keys, dtype=pl.String).is_first_distinct()
            reasons.append(pl.when(near).then(pl.lit("near duplicate")))
        table = table.with_columns(reason=pl.coalesce(reasons))
        if self.duplicates == "none" and not self.own_ids:
            nth = pl.col("id").cum_count().over("id")
            again = pl.concat_str(pl.col("id"), pl.lit("-"), nth.cast(pl.String))
            table = table.with_columns(pl.when(nth > 1).then(again).otherwise("id").alias("id"))
        remaining = table.filter(pl.col("reason").is_null()).drop("reason")
        dropped = table.filter(pl.col("reason").is_not_null())
        folder = Path(self.folder)
        write_table(as_rejected(dropped, "ingest"), folder / f"rejected-1-{bucket:06d}.parquet")
        write_table(remaining, folder / f"rows-{bucket:06d}.parquet")
        return str(bucket)


def content_digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def replacement(name: str, value: Any, replacements: Mapping[str, str]) -> str:
    if value not in replacements:
        raise RowError(f"{name} has no replacement", repr(value))
    return replacements[value]


def check(values: Values, patterns: Mapping[str, re.Pattern[str]], labels: frozenset[str]) -> None:
    """Raises `RowError` for a parsed row that cannot be a record."""
    if not (values.get("target") or "").strip():
        raise RowError("empty target")
    if not any(isinstance(values.get(name), bytes) for name in MEDIA):
        named = [str(values.get(name) or "").strip() for name in MODALITIES]
        if not any(named):
            raise RowError("empty text" if "text" in values else "empty source")
    for name, pattern in patterns.items():
        match = pattern.search(str(values.get(name) or ""))
        if match:
            raise RowError(f"{name} matches reject", f"{match[0]!r} matches {pattern.pattern}")
    if labels and values["target"] not in labels:
        raise RowError("target is no label", repr(values["target"]))


def normalized_key(text: str) -> str:
    """Text without case, width, punctuation and spaces: what near duplicates have in common."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    alphanumeric = "".join(character for character in folded if character.isalnum())
    return alphanumeric or folded
