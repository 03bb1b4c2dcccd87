"""Small inputs that stand for large ones: what is held in memory and what is written is limited by
what they become, not by what they are."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pipelines.running.beam_jobs import BeamJobs, Ticks
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.shared import SharedPath
from stages.ingest import placement
from stages.ingest.formats import parse
from stages.ingest.opened import Limits, Unit
from stages.ingest.options import IngestConfig
from stages.ingest.stage import Ingest
from stages.rows import batches
from stages.rows.batches import in_groups, row_bytes
from stages.rows.rejects import EXCERPT, Reject, RejectFile
from stages.rows.shards import table_groups

COLUMNS = {"text": "text", "target": "target"}


def unit(path: Path, kind: str, **options: Any) -> Unit:
    return Unit(str(path), path.name, kind, COLUMNS, **options)  # type: ignore[arg-type]


def peak(code: str, *arguments: object) -> int:
    """The peak memory, in megabytes, of a process that runs some code."""
    # Not ru_maxrss, which begins with the peak of the process that started this one.
    code += "\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    limit = 8 << 30
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) // 1024


PARSE = """\
import sys
from stages.ingest.formats import parse
from stages.ingest.opened import Unit
columns = {"text": "text", "target": "target"}
for row in parse(Unit(sys.argv[1], "a", sys.argv[2], columns)):
    last = row.reason
print(last)
"""


@pytest.mark.parametrize("kind", ["text", "list"])
def test_parquet_in_which_one_value_stands_for_many(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    if kind == "list":  # each has ten million times the same number
        ends = pa.array([0, 10**7, 2 * 10**7, 3 * 10**7])
        values: Any = pa.ListArray.from_arrays(ends, pa.nulls(3 * 10**7, pa.int8()))
    else:
        one = pa.array(["a" * 3_000_000])
        values = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), one)
    table = pa.table({"text": values, "target": [f"b{n}" for n in range(len(values))]})
    parquet.write_table(
        table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30
    )
    assert path.stat().st_size < 60_000
    assert peak(PARSE, path, "parquet") < 700


def test_records_are_read_as_they_were(tmp_path: Path) -> None:
    """Dictionaries, lists and structures of a Parquet file, in parts of any size."""
    path = tmp_path / "a.parquet"
    rows = [
        {
            "text": f"t{n % 3}" * (n % 5),
            "target": str(n),
            "more": {"x": [n, None], "y": f"z{n % 2}"},
        }
        for n in range(250)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    read = Unit(str(path), "a", "parquet", {"text": "text", "target": "target", "m": "more"})
    whole = list(parse(read))
    assert [row.values["text"] for row in whole] == [row["text"] for row in rows]
    assert [json.loads(str(row.values["m"])) for row in whole] == [row["more"] for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.ingest.structured.PYTHON_BYTES", 100)
        assert list(parse(read)) == whole


def test_a_record_of_parquet_that_is_too_large_is_one_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a", "b" * 50_000, "c"], "target": ["x", "y", "z"]})
    parquet.write_table(table, path)
    found = list(parse(unit(path, "parquet", limits=Limits(max_document_bytes=10_000))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.ingest.structured.PYTHON_BYTES", 1000)
        found = list(parse(unit(path, "parquet", limits=Limits(max_document_bytes=10_000))))
    assert [row.reason for row in found] == [None, "record too large", None]


def test_rows_of_one_record_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "t" * 1000, "list": [{"n": n} for n in range(count)]} for count in (3, 5000, 2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    exploded = Unit(
        str(path), "a", "jsonl", {"text": "text", "target": "list.n"}, explode="list",
        limits=Limits(max_document_bytes=100_000),
    )  # fmt: skip
    found = list(parse(exploded))
    assert [(row.line, row.reason) for row in found] == [
        *[(1, None)] * 3, (2, "record too large"), *[(3, None)] * 2
    ]  # fmt: skip
    assert "its 5,000 rows have more than max_document_bytes" in found[3].detail
    assert [row.values["target"] for row in found[:3]] == ["0", "1", "2"]


def test_rows_of_one_file_have_a_limit(tmp_path: Path) -> None:
    """A few bytes of Parquet can stand for any number of rows."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["t" * 900] * 20, "target": ["x"] * 20}), path)
    found = list(parse(unit(path, "parquet", limits=Limits(max_unpacked_bytes=5000))))
    assert [row.reason for row in found] == [None] * 5 + ["unreadable file"]
    assert "its rows have more than max_unpacked_bytes: 5,000" in found[-1].detail


def test_an_element_of_json_has_the_limit_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "t" * n, "target": "x"} for n in (1, 9000, 2)]))
    found = list(parse(unit(path, "json", limits=Limits(max_line_bytes=5000))))
    assert [row.reason for row in found] == [None, "line too long", None]


def test_rejects_are_short_however_long_rows_are(tmp_path: Path) -> None:
    path, long = tmp_path / "a.tsv", "h" * 200_000
    path.write_text(f"{long}\n" + "a\n" * 9)
    found = list(parse(unit(path, "tsv", header=[long])))
    assert [row.reason for row in found] == ["missing column"] * 9
    assert all("the header has hhhh" in row.detail and len(row.detail) < 300 for row in found)
    file = RejectFile(tmp_path / "r.arrow", 1)
    for number in range(100):
        reject = Reject(position=str(number), stage="s", reason="r", detail=long, excerpt=long)
        file.add(replace(reject, id=long))
    parts = [part or "" for r in file.held for part in (r.id, r.detail, r.excerpt)]
    assert len(parts) == 300 and {len(part) for part in parts} == {EXCERPT}
    assert all(len(example) < 2 * EXCERPT for _, example in file.examples(3))


def test_progress_takes_no_room(tmp_path: Path) -> None:
    """Units of work can be the bytes of an input."""
    ticks = Ticks(SharedPath.of(tmp_path / "t"))
    ticks(3)
    ticks(40_000_000_000)
    ticks(2)
    facts = (tmp_path / "t").stat()
    assert facts.st_size == 40_000_000_005 and facts.st_blocks * 512 < 1_000_000


@pytest.mark.parametrize("seed", range(5))
def test_where_a_group_ends_depends_on_rows_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "GROUP_BYTES", 100)
    chance = np.random.default_rng(seed)
    sizes = chance.choice([0, 1, 5, 40, 99, 100, 101, 500], 200)
    table = pl.DataFrame({"n": range(200), "t": ["x" * int(n) for n in sizes]})
    assert row_bytes(table).tolist() == sizes.tolist()

    def groups(step: int) -> list[list[int]]:
        parts = (table[start : start + step] for start in range(0, 200, step))
        return [group["n"].to_list() for group in in_groups(parts, 7)]

    whole = groups(200)
    assert [n for group in whole for n in group] == list(range(200))
    for step in (1, 3, 64):
        assert groups(step) == whole
    for group, following in zip(whole, [*whole[1:], None], strict=True):
        weight = sum(sizes[group])
        assert len(group) == 1 or (len(group) <= 7 and weight <= 100)
        if following is not None:  # the next row did not fit
            assert len(group) == 7 or weight + sizes[following[0]] > 100


def test_a_file_that_many_rows_name_is_held_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    size = (tmp_path / "a.png").stat().st_size
    (tmp_path / "m.tsv").write_text("image\ttext\n" + "".join(f"a.png\tt{n}\n" for n in range(40)))

    def run(name: str) -> list[pl.DataFrame]:
        output, scratch = tmp_path / name, tmp_path / f"{name}-scratch"
        output.mkdir()
        scratch.mkdir()
        events = Events(None)
        columns = {"image": "image", "target": "text"}
        config = IngestConfig.model_validate({"source": "m.tsv", "columns": columns, "shards": 1})
        context = Context("i", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
        Ingest(config).run(context, {})
        (shard,) = output.glob("rows/*.parquet")
        return list(table_groups(shard))

    whole = run("whole")
    monkeypatch.setattr(placement, "GROUP_BYTES", 5 * size - 1)
    parts = run("parts")
    assert [len(group) for group in whole] == [32, 8]
    assert [len(group) for group in parts] == [5] * 6 + [2, 5, 3]
    assert pl.concat(whole).equals(pl.concat(parts))
