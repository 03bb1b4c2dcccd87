"""Shards are decoded in groups with about the same amount of work."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipelines.store.artifacts import loose_artifact
from stages.features.feature_set import FeatureSet
from stages.generate import work


def features(folder: Path, rows: list[int]) -> FeatureSet:
    """Text features whose shards have these numbers of test rows, and three train rows each."""
    (folder / "rows").mkdir()
    for number, count in enumerate(rows):
        table = pl.DataFrame({"split": ["test"] * count + ["train"] * 3})
        table.write_parquet(folder / "rows" / f"{number:02d}.parquet")
    return FeatureSet(
        loose_artifact(
            folder,
        ),
        {},
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([100, 100, 100, 100], [400]),
        ([0, 0], [0]),
        ([5000] * 8, [10_000] * 4),
        ([9000] * 4 + [1000] * 4, [10_000] * 4),
        ([4000, 4000, 100], [4100, 4000]),
        ([70_000, 10], [70_000, 10]),
        ([10_000] * 8, [10_000] * 8),
    ],
)
def test_groups_are_alike(tmp_path: Path, rows: list[int], expected: list[int]) -> None:
    groups = work.shard_groups(features(tmp_path, rows), "test")
    assert [group.rows for group in groups] == expected
    names = [name for group in groups for name in group.shards]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "rows").iterdir())
    assert len({group.name for group in groups}) == len(groups)


def test_large_shards_are_decoded_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feature_set = features(tmp_path, [10, 10, 10, 10])
    size = feature_set.size_of(feature_set.shards()[0])
    monkeypatch.setattr(work, "GROUP_BYTES", 2 * size)
    assert [group.rows for group in work.shard_groups(feature_set, "test")] == [20, 20]
