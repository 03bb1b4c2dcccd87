"""Shards on a disk that is full."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipelines.running.failures import is_full
from stages.rows.shards import write_parquet


def test_a_full_disk_is_told_wherever_it_is_noticed(small_disk: Callable[[int], Path]) -> None:
    """Polars says of some that the file is damaged: where the header of a page did not fit."""
    place = small_disk(4096) / "rows.parquet"
    draw, said = random.Random(1), set()
    for rows in range(30, 2000, 37):
        texts = [draw.randbytes(8).hex() for _ in range(rows)]
        table = pl.DataFrame({"a": texts, "b": range(rows), "c": ["x"] * rows})
        options = {"compression": "uncompressed", "row_group_size": 32}
        try:
            table.write_parquet(place, compression="uncompressed", row_group_size=32)
        except pl.exceptions.ComputeError as error:
            said.add(str(error).rpartition(": ")[2])
        place.unlink(missing_ok=True)
        if rows > 67:
            with pytest.raises(OSError, match="No space left on device") as caught:
                write_parquet(table, place, **options)
            assert caught.value.errno == errno.ENOSPC and is_full(caught.value)
        place.unlink(missing_ok=True)
    assert "transport error" in said, "the test has found what it looks for"


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    table = pl.DataFrame({"a": [object()]})
    with pytest.raises(pl.exceptions.ComputeError):
        write_parquet(table, tmp_path / "rows.parquet")
