"""Every table of a report as CSV and as Parquet, for other people's tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.store.files import replacing


def write_tables(report: Mapping[str, Any], folder: Path) -> None:
    """Writes `NAME.csv` and `NAME.parquet` of every table that has rows."""
    folder.mkdir(exist_ok=True)
    for name, rows in tables(report).items():
        if rows:
            table = pl.DataFrame(rows, infer_schema_length=None)
            with replacing(folder / f"{name}.csv") as temporary:
                table.write_csv(temporary)
            with replacing(folder / f"{name}.parquet") as temporary:
                table.write_parquet(temporary)


def tables(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The tables of `report.json`, flat: a slice is JSON, an interval two columns."""
    return {
        "scores": [_flat(score) for score in report["scores"]],
        "comparison": [_flat(entry) for entry in report["comparison"]],
        "systems": [_flat(entry) for entry in report["systems"]],
        "gates": [dict(gate) for gate in report["gates"]],
        "stages": list(_stages(report["stages"])),
        "rejected": [
            {"stage": stage, "reason": reason, "rows": rows}
            for stage, reasons in report["rejected"].items()
            for reason, rows in reasons.items()
        ],
        "curves": list(_curves(report["curves"])),
        "labels": [
            {"task": entry["task"], "split": entry["split"], **row}
            for entry in report["classification"]
            for row in entry.get("by_label", [])
        ],
        "confusion": list(_confusion(report["classification"])),
        "calibration": [
            {"task": entry["task"], "split": entry["split"], **row}
            for entry in report["classification"]
            for row in entry.get("calibration", [])
        ],
        "diversity": [dict(row) for row in report["diversity"]],
    }


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in entry.items() if key not in ("slice", "ci95")}
    flat["slice"] = json.dumps(entry["slice"], ensure_ascii=False) if entry["slice"] else None
    low, high = entry["ci95"] or (None, None)
    return {**flat, "ci95_low": low, "ci95_high": high}


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    wanted = ("status", "reason", "seconds", "made_in_seconds", "kind", "rows", "digest")
    for name, facts in stages.items():
        rejected = sum(facts.get("rejected", {}).values())
        yield {"stage": name, **{key: facts.get(key) for key in wanted}, "rejected": rejected}


def _curves(curves: Mapping[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for stage, points in curves.items():
        for point in points:
            numbers = {key: value for key, value in point.items() if isinstance(value, int | float)}
            yield {"stage": stage, **numbers}


def _confusion(classification: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in classification:
        names = [*entry.get("labels", []), None]
        for label, counts in zip(names, entry.get("matrix", []), strict=False):
            for said, count in zip(names, counts, strict=True):
                yield {
                    "task": entry["task"], "split": entry["split"], "reference": label,
                    "hypothesis": said, "rows": count,
                }  # fmt: skip
