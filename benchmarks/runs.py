"""Reading of finished runs, for several benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl


def artifacts_of(run: Path) -> dict[str, Path]:
    """The folder of every stage's artifact, of a run's folder."""
    stages = json.loads((run / "run.json").read_text())["stages"]
    root = run.resolve().parents[1]
    return {name: root / stage["artifact"] for name, stage in stages.items()}


def rows_of(artifact: Path) -> pl.DataFrame:
    """All rows of an artifact; columns that some shards lack are null there."""
    paths = sorted(artifact.glob("rows/*.parquet"))
    return pl.concat(map(pl.read_parquet, paths), how="diagonal")
