"""Every table of a report as CSV and as Parquet, for other people's tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias, cast

import polars as pl

from pipelines.contracts.base import Json
from pipelines.contracts.reports import Report
from pipelines.contracts.scores import Classification, Comparison, Score, Variety
from pipelines.contracts.shown import visible
from pipelines.store.files import replacing
from stages.rows.shards import write_parquet

FlatRow: TypeAlias = dict[str, Json]
"""A row of a table of other tools: column to a number, a string or nothing."""


def write_tables(report: Report, folder: Path) -> None:
    """Writes `NAME.csv` and `NAME.parquet` of every table that has rows."""
    folder.mkdir(exist_ok=True)
    for name, rows in tables(report).items():
        if rows:
            table = pl.DataFrame(rows, infer_schema_length=None)
            with replacing(folder / f"{name}.csv") as temporary:
                table.with_columns(pl.col(pl.String).map_batches(quoted)).write_csv(
                    temporary, quote_style="non_numeric"
                )
            with replacing(folder / f"{name}.parquet") as temporary:
                write_parquet(table, temporary)


FORMULA = r"^[=+\-@\t\r\n＝＋－＠]"
"""How a cell begins that a spreadsheet would compute (OWASP, CSV injection)."""


def quoted(texts: pl.Series) -> pl.Series:
    """Cells that a spreadsheet would run get a quote before them, and control characters become
    visible. Parquet has them as they are."""
    shown = [None if text is None else visible(text) for text in texts]
    column = pl.Series(texts.name, shown, dtype=pl.String)
    return pl.select(
        pl.when(column.str.contains(FORMULA)).then(pl.lit("'") + column).otherwise(column)
    ).to_series()


def tables(report: Report) -> dict[str, list[FlatRow]]:
    """The tables of `report.json`, flat: a slice is JSON, an interval two columns."""
    return {
        "scores": [_flat(score) for score in report.scores],
        "comparison": [_flat(entry) for entry in report.comparison],
        "systems": [_flat(entry) for entry in report.systems],
        "gates": [gate.to_json() for gate in report.gates],
        "stages": list(_stages(report)),
        "rejected": [
            {"stage": stage, "reason": reason, "rows": rows}
            for stage, reasons in report.rejected.items()
            for reason, rows in reasons.items()
        ],
        "curves": [
            {"stage": stage, **point} for stage, points in report.curves.items() for point in points
        ],
        "labels": [
            {"task": entry.task, "split": entry.split, **row.to_json()}
            for entry in report.classification
            for row in entry.by_label or ()
        ],
        "confusion": [row for entry in report.classification for row in _confusion(entry)],
        "calibration": [
            {"task": entry.task, "split": entry.split, **row.to_json()}
            for entry in report.classification
            for row in entry.calibration or ()
        ],
        "latent": [entry.to_json() for entry in report.latent],
        "diversity": [_variety(entry) for entry in report.diversity],
        "wishes": [
            {**entry.to_json(), "values": ", ".join(entry.values)} for entry in report.wishes
        ],
        "tradeoff": [_with_ends(entry.to_json()) for entry in report.tradeoff],
    }


def _flat(entry: Score | Comparison) -> FlatRow:
    flat = {key: value for key, value in entry.to_json().items() if key not in ("slice", "ci95")}
    flat["slice"] = json.dumps(entry.slice, ensure_ascii=False) if entry.slice else None
    low, high = entry.ci95 or (None, None)
    return {**flat, "ci95_low": low, "ci95_high": high}


def _variety(entry: Variety) -> FlatRow:
    flat = _with_ends({key: v for key, v in entry.to_json().items() if key != "gains"})
    for gain in entry.gains:
        flat |= {f"{gain.metric}_gain": gain.difference, f"{gain.metric}_gain_p": gain.p}
    return flat


def _with_ends(entry: FlatRow) -> FlatRow:
    """An entry with the ends of each interval as columns."""
    ends = cast("dict[str, tuple[float, float]]", entry.pop("ci95", None) or {})
    for name, (low, high) in ends.items():
        entry |= {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
    return entry


def _stages(report: Report) -> Iterator[FlatRow]:
    wanted = ("status", "reason", "seconds", "made_in_seconds", "kind", "rows", "digest")
    for name, stage in report.stages.items():
        told = stage.to_json()
        yield {
            "stage": name,
            **{key: told.get(key) for key in wanted},
            "rejected": sum(stage.rejected.values()),
        }


def _confusion(entry: Classification) -> Iterator[FlatRow]:
    names = [*(entry.labels or ()), None]
    for label, counts in zip(names, entry.matrix or (), strict=False):
        for hypothesis, count in zip(names, counts, strict=True):
            yield {
                "task": entry.task, "split": entry.split, "reference": label,
                "hypothesis": hypothesis, "rows": count,
            }  # fmt: skip
