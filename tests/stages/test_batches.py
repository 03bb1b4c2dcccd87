"""Tables in scratch, cut by key and put together again."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl
import pytest

from pipelines.store.shared import SharedPath
from stages.rows.batches import Batches, BatchFile, in_groups
from stages.rows.shards import TableFile, table_groups


@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [3], [4], [5, 0, 3], [1] * 9, [17, 2, 1]])
def test_groups_have_exactly_the_size_asked_for(sizes: list[int]) -> None:
    ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    tables = [
        pl.DataFrame({"n": list(range(a, b))}, schema={"n": pl.Int64})
        for a, b in itertools.pairwise(ends)
    ]
    groups = list(in_groups(tables, 4))
    assert [n for group in groups for n in group["n"]] == list(range(sum(sizes)))
    assert all(len(group) == 4 for group in groups[:-1])
    assert len(groups) == (max(1, -(-sum(sizes) // 4)) if sizes else 0)


def test_every_key_gets_its_rows_in_order(tmp_path: Path) -> None:
    files = {}
    for name in ("b", "a"):
        file = BatchFile(tmp_path / name)
        for start in (0, 10):
            table = pl.DataFrame({"n": range(start, start + 10), name: [name] * 10})
            file.add_parted(table, table["n"] % 3)
        files[SharedPath.of(file.path)] = file.close()
        assert not list(tmp_path.glob(".*"))
    empty = BatchFile(tmp_path / "empty")
    files[SharedPath.of(empty.path)] = empty.close()
    assert not empty.path.exists()
    indexed = Batches(files).indexed(SharedPath.of(tmp_path / "index.parquet"))
    for key in range(3):
        rows, same = Batches(files).read(key), indexed.read(key)
        assert rows is not None and same is not None
        assert rows.equals(same)
        expected = [n for n in range(20) if n % 3 == key]
        assert rows["n"].to_list() == expected * 2
        assert rows["a"].null_count() == rows["b"].null_count() == len(expected)
    assert Batches(files).read(3) is None and indexed.read(3) is None


def test_a_table_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(ValueError, match="midway"), TableFile(path) as file:
        file.add(pl.DataFrame({"a": [1]}))
        raise ValueError("midway")
    assert not path.exists()
    with TableFile(path, pl.Schema({"a": pl.Int64, "b": pl.String})) as file:
        file.add(pl.DataFrame({"a": [1, 2], "c": [0, 0]}))
        file.add(pl.DataFrame({"b": ["x"], "a": [3]}))
    assert [group.rows() for group in table_groups(path)] == [[(1, None), (2, None)], [(3, "x")]]
    with TableFile(path, pl.Schema({"a": pl.Int64, "b": pl.String})):
        pass
    assert [group.columns for group in table_groups(path, ["b"])] == [["b"]]
