"""Reading features returns the rows that they were made from."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.modalities.text_settings import TextSettings
from pipelines.store.shared import SharedPath
from stages.features.feature_set import FeaturePaths


def test_a_free_column_is_kept_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    settings = TextSettings(sources=False, tasks=("read",))
    (tmp_path / "text" / "text.json").write_text(settings.model_dump_json())
    table = pl.DataFrame(
        {
            "id": ["a", "b"],
            "split": ["test", "train"],
            "task": ["read", "read"],
            "modalities": ["text", "text"],
            "target_ids": [[4, 2], [5, 2]],
            "reason": ["mine", "mine"],
        }
    )
    (tmp_path / "rows").mkdir()
    table.write_parquet(tmp_path / "rows" / "0.parquet")
    rows = FeaturePaths(SharedPath.of(tmp_path), {}).load(["0.parquet"], "test", True)
    assert rows.table["id"].to_list() == ["a"] and rows.table["part"].to_list() == [0]
    assert rows.table["reason"].to_list() == ["mine"]
    assert rows.missing.is_empty() and "reason" in rows.missing.columns
