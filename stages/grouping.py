"""First job of ingest: rows parsed, and brought together by source, where duplicates fall.

Elements between the steps are Arrow tables of many rows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import polars as pl

from stages.formats import Unit, parse
from stages.ingest import Deduplicate
from stages.rows import as_rejected, content_hash, from_arrow, rejected_rows, to_arrow, write_table

DUPLICATES = ("duplicate", "near duplicate")
"""Reasons that do not make data bad."""


def parse_job(pipeline: Any, units: list[dict[str, Any]], grouping: Grouping) -> Any:
    return (
        pipeline
        | "Units" >> beam.Create(units)
        | "Spread" >> beam.Reshuffle()
        | "Parse" >> beam.FlatMap(grouping.parse)
        | "By source" >> beam.GroupByKey()
        | "Deduplicate" >> beam.Map(grouping.deduplicate)
    )


class Grouping:
    """First job: parse rows, and drop duplicates among those of one source."""

    def __init__(
        self, shards: int, task: str, duplicates: Deduplicate, own_ids: bool, folder: str
    ) -> None:
        self.shards, self.task, self.duplicates = shards, task, duplicates
        self.own_ids, self.folder = own_ids, folder

    def parse(self, unit: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
        """The rows of a piece of a file, one Arrow table for each bucket of sources."""
        fields = {key: unit[key] for key in Unit.__dataclass_fields__ if key in unit}
        kept = {name: re.compile(pattern) for name, pattern in unit["extract"].items()}
        refused = {name: re.compile(pattern) for name, pattern in unit["reject"].items()}
        rows, rejects, read = [], [], 0
        for parsed in parse(Unit(**fields)):
            read += 1
            values = dict(parsed.values)
            reason, detail = parsed.reason, parsed.detail
            if reason is None:
                for name, pattern in kept.items():
                    match = pattern.search(values.get(name) or "")
                    values[name] = match[0].strip() if match else ""
                reason, detail = refusal(values, refused)
            if reason is not None:
                rejects.append(
                    {
                        "position": f"{unit['shown']}:{parsed.line}",
                        "stage": "ingest",
                        "reason": reason,
                        "detail": detail,
                        "excerpt": " | ".join(str(v) for v in values.values() if v is not None),
                    }
                )
                continue
            text, target = str(values["text"]), str(values["target"])
            key = normalized_key(text) if self.duplicates == "normalized" else text
            rows.append(
                {
                    **values,
                    "id": values.get("id") or content_hash(self.task, text, target),
                    "task": self.task,
                    "split": "train" if unit["extra"] else unit["split"],
                    "position": f"{unit['shown']}:{parsed.line}",
                    "group": content_hash(key),
                    "number": unit["number"],
                    "line": parsed.line,
                }
            )
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_table(rejected_rows(rejects), folder / f"rejected-0-{unit['number']:06d}.parquet")
        (folder / f"read-{unit['number']:06d}.count").write_text(str(read))
        schema = {"number": pl.Int64, "line": pl.Int64}
        names = list(dict.fromkeys([*unit["columns"], "id", "task", "split", "position", "group"]))
        table = pl.DataFrame(
            rows, schema={**dict.fromkeys(names, pl.String), **schema}, orient="row"
        )
        buckets = [int(group[:8], 16) % self.shards for group in table["group"]]
        for bucket in sorted(set(buckets)):
            yield bucket, to_arrow(table.filter(pl.Series(buckets, dtype=pl.Int64) == bucket))

    def deduplicate(self, keyed: tuple[int, Any]) -> str:
        """Writes one bucket without repeated pairs and without sources in two splits."""

        bucket, tables = keyed
        rank = {"test": 0, "valid": 1, "train": 2}
        ranked = pl.col("split").replace_strict(rank, default=None, return_dtype=pl.Int64)
        # Of repeated rows, the one that is measured on stays; then the one read first.
        table = from_arrow(tables).sort(ranked.fill_null(1), "number", "line", maintain_order=True)
        # Where files were given for each split a source may stand in two.
        best = ranked.min().over("group")
        reasons = [pl.when(ranked > best).then(pl.lit("source is in another split"))]
        if self.duplicates != "none":
            repeated = ~pl.struct("text", "target").is_first_distinct()
            reasons.append(pl.when(repeated).then(pl.lit("duplicate")))
        if self.duplicates == "normalized":
            pairs = table.select("text", "target").iter_rows()
            keys = [f"{normalized_key(text)}\0{normalized_key(target)}" for text, target in pairs]
            near = ~pl.Series(keys, dtype=pl.String).is_first_distinct()
            reasons.append(pl.when(near).then(pl.lit("near duplicate")))
        table = table.with_columns(reason=pl.coalesce(reasons))
        if self.duplicates == "none" and not self.own_ids:
            nth = pl.col("id").cum_count().over("id")
            again = pl.concat_str(pl.col("id"), pl.lit("-"), nth.cast(pl.String))
            table = table.with_columns(pl.when(nth > 1).then(again).otherwise("id").alias("id"))
        kept = table.filter(pl.col("reason").is_null()).drop("reason")
        dropped = table.filter(pl.col("reason").is_not_null())
        folder = Path(self.folder)
        write_table(as_rejected(dropped, "ingest"), folder / f"rejected-1-{bucket:06d}.parquet")
        write_table(kept, folder / f"rows-{bucket:06d}.parquet")
        return str(bucket)


def refusal(
    values: Mapping[str, str | None], patterns: Mapping[str, re.Pattern[str]]
) -> tuple[str | None, str]:
    """Why a parsed row cannot be a record, or None."""
    for name in ("text", "target"):
        if not (values.get(name) or "").strip():
            return f"empty {name}", ""
    for name, pattern in patterns.items():
        found = pattern.search(values.get(name) or "")
        if found:
            return f"{name} matches reject", f"{found[0]!r} matches {pattern.pattern}"
    return None, ""


def normalized_key(text: str) -> str:
    """Text without case, width, punctuation and spaces: what near duplicates have in common."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(character for character in folded if character.isalnum())
    return kept or folded
