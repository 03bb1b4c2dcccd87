"""Sources that are damaged, that change while they are read, or that want to read or take what they
should not: nothing is lost silently, nothing is let in, and every failure says what is wrong."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.running.executor import check_accounts
from pipelines.stage import Context, Result
from pipelines.store.remembered import Memory
from pipelines.store.sources import SourceError
from stages.ingest.errors import RowError
from stages.ingest.locating import Places
from stages.ingest.options import IngestConfig
from stages.ingest.stage import Ingest

Run = Callable[..., subprocess.CompletedProcess[str]]
COLUMNS: dict[str, Any] = {"text": "zh", "target": "en"}
GOOD = b"zh\ten\n" + b"".join(b"source %d\ttarget %d\n" % (n, n) for n in range(40))


class Job:
    """One ingest, planned and run as the engine does it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        config = {"source": "a.tsv", "columns": COLUMNS, "max_rejected": 1.0} | options
        self.stage = Ingest(IngestConfig.model_validate(config))
        self.outside: dict[str, str] = {}

    def plan(self) -> None:
        files = self.stage.outside(self.folder)
        self.outside = dict(Memory(self.folder / "store").digests(files, ""))

    def run(self, scratch: str = "scratch") -> Result:
        self.output = self.folder / f"out-{time.monotonic_ns()}"
        self.output.mkdir()
        (self.folder / scratch).mkdir(exist_ok=True)
        events = Events(None)
        context = Context(
            "ingest", 0, self.folder, self.output, self.folder / scratch, 1, events,
            BeamJobs({}, events), outside=self.outside,
        )  # fmt: skip
        result = self.stage.run(context, {})
        check_accounts("ingest", result, self.output)
        self.rows = pl.concat([pl.read_parquet(p) for p in sorted(self.output.glob("rows/*"))])
        rejected = pl.concat([pl.read_parquet(p) for p in sorted(self.output.glob("rejected/*"))])
        self.rejected = {
            position: (reason, detail)
            for position, reason, detail in rejected.select(
                "position", "reason", "detail"
            ).iter_rows()
        }
        assert len(rejected) == sum(result.rejected.values())
        return result


# ── What was hashed is what was read ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json", "a.parquet", "a.tsv.gz"])
@pytest.mark.parametrize("restored", [False, True])
def test_a_source_that_changes_after_the_plan_fails_the_stage(
    tmp_path: Path, name: str, restored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is as before when the stage has read it."""

    def content(word: str) -> bytes:
        if name.endswith(".parquet"):
            path = tmp_path / "made.parquet"
            pl.DataFrame({"zh": [word], "en": [word]}).write_parquet(path)
            return path.read_bytes()
        if name.endswith(".json"):
            return json.dumps([{"zh": word, "en": word}]).encode()
        if name.endswith(".jsonl"):
            return json.dumps({"zh": word, "en": word}).encode()
        lines = f"zh,en\n{word},{word}\n".replace(",", "," if name == "a.csv" else "\t").encode()
        return gzip.compress(lines) if name.endswith(".gz") else lines

    path = tmp_path / name
    path.write_bytes(content("aaa"))
    job = Job(tmp_path, source=name)
    job.plan()
    path.write_bytes(content("bbb"))
    if restored:
        from stages.ingest import parsing
        from stages.ingest.formats import parse

        def then_restored(unit: Any) -> Any:
            rows = iter(parse(unit))
            try:
                yield next(rows)
            finally:
                path.write_bytes(content("aaa"))
            yield from rows

        monkeypatch.setattr(parsing, "parse", then_restored)
        if name == "a.tsv":
            pytest.skip("cut at line ends, it is compared before it is parsed: see above")
    with pytest.raises(SourceError, match=r"has changed"):
        job.run()


def test_a_picture_that_changes_fails_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.store import sources
    from stages.ingest import parsing

    (tmp_path / "a.tsv").write_text("file\ten\nx.png\tx\n")
    picture = tmp_path / "x.png"
    columns = {"image": "file", "target": "en"}
    picture.write_bytes(b"aaa")
    job = Job(tmp_path, columns=columns)
    job.plan()
    picture.write_bytes(b"bbb")
    with pytest.raises(SourceError, match=r"x\.png has changed since it was read for the plan"):
        job.run("first")
    picture.write_bytes(b"aaa")
    read = sources.read_whole

    def then_other(url: str, limit: int) -> bytes:
        data = read(url, limit)
        picture.write_bytes(b"ccc")
        return data

    monkeypatch.setattr(parsing, "read_whole", then_other)
    with pytest.raises(SourceError, match=r"x\.png has changed while it was read"):
        job.run("second")
    monkeypatch.undo()
    picture.unlink()
    with pytest.raises(SourceError, match=r"x\.png was there when the run was planned"):
        job.run("third")


def test_the_engine_plans_again_after_a_change(tmp_path: Path, run_pipeline: Run) -> None:
    """A memory that is wrong about a source heals: the next run reads it again."""
    source = tmp_path / "a.tsv"
    source.write_bytes(GOOD)
    os.utime(source, (1, 1))
    time.sleep(2.1)  # A younger file is not remembered.
    job = tmp_path / "job.yaml"
    job.write_text(
        "stages:\n  rows: {use: ingest, source: a.tsv, columns: {text: zh, target: en}}\n"
    )
    runs = tmp_path / "runs"
    run_pipeline(job, "--runs-dir", runs, "--plan")
    memory = Memory(runs / "store")
    memory.remember(str(source), "0" * 64, str(source))
    failed = run_pipeline(job, "--runs-dir", runs, code=1)
    assert "a.tsv has changed since it was read for the plan" in failed.stderr
    run_pipeline(job, "--runs-dir", runs)


# ── What is missing, forbidden or unreachable ────────────────────────────────────────────────────


def test_a_worker_without_the_input_loses_no_row_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.ingest import units

    monkeypatch.setattr(units, "RANGE_BYTES", 300)
    (tmp_path / "a.tsv").write_bytes(GOOD)
    job = Job(tmp_path)
    job.plan()
    listed = units.list_units

    def then_gone(*arguments: Any) -> Any:
        found = listed(*arguments)
        (tmp_path / "a.tsv").rename(tmp_path / "elsewhere.tsv")
        return found

    monkeypatch.setattr("stages.ingest.work.list_units", then_gone)
    with pytest.raises(SourceError, match=r"a\.tsv is missing; do all workers have the file\?"):
        job.run()
    monkeypatch.undo()
    (tmp_path / "elsewhere.tsv").rename(tmp_path / "a.tsv")
    assert job.run().rows == 40, "what failed leaves nothing that counts as done"


def test_a_folder_of_scratch_that_workers_do_not_share_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with remote workers: the work is done, and its files are somewhere else."""
    (tmp_path / "a.tsv").write_bytes(GOOD)
    job = Job(tmp_path)
    run = BeamJobs.run
    monkeypatch.setattr(BeamJobs, "run", lambda self, build, local=False: None)
    with pytest.raises(RuntimeError, match="do all workers share the folder"):
        job.run()
    monkeypatch.setattr(BeamJobs, "run", run)
    assert job.run().rows == 40


def test_relative_paths_do_not_depend_on_where_a_worker_stands(tmp_path: Path, root: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "a.tsv").write_bytes(GOOD)
    (tmp_path / "job.yaml").write_text(
        "stages:\n  rows: {use: ingest, source: a.tsv, columns: {text: zh, target: en}}\n"
        "beam: {direct_num_workers: 2}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pipelines.run", "../job.yaml"], cwd=tmp_path / "work", check=True,
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True,
    )  # fmt: skip


# ── What a table may name ────────────────────────────────────────────────────────────────────────


def test_rows_cannot_name_what_lies_outside_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "secret.txt").write_text("hidden content")
    (data / "in.png").write_bytes(b"inside")
    (data / "sub").mkdir()
    (data / "sub" / "in.png").write_bytes(b"inside too")
    (data / "link.png").symlink_to("../secret.txt")
    (data / "within.png").symlink_to("in.png")
    (data / "loop.png").symlink_to("loop.png")
    (data / "folder").symlink_to("..")
    os.mkfifo(data / "pipe.png")
    wanted = {
        "in.png": None,
        "sub/../in.png": None,
        "sub/in.png": None,
        "within.png": None,
        f"{data}/in.png": None,
        f"file://{data}/in.png": None,
        "../secret.txt": "file outside the table's folder",
        f"{tmp_path}/secret.txt": "file outside the table's folder",
        "/etc/passwd": "file outside the table's folder",
        "file:///etc/passwd": "file outside the table's folder",
        "link.png": "file outside the table's folder",
        "folder/secret.txt": "file outside the table's folder",
        "s3://bucket/x.png": "file outside the table's folder",
        "http://127.0.0.1/x.png": "file outside the table's folder",
        "foo://x": "file outside the table's folder",
        "zip://x.png::data.zip": "file outside the table's folder",
        "pipe.png": "not a file",
        "sub": "not a file",
        "/dev/zero": "file outside the table's folder",
        "loop.png": "no file name",
        "n" * 300: "no file name",
        "lost.png": "image file not found",
    }
    lines = [f"{name}\ttarget {number}" for number, name in enumerate(wanted)]
    (data / "t.tsv").write_text("file\ten\n" + "\n".join(lines) + "\n")
    options = {"source": "data/t.tsv", "columns": {"image": "file", "target": "en"}}
    job = Job(tmp_path, **options)
    started = time.monotonic()
    job.plan()
    result = job.run()
    assert time.monotonic() - started < 20
    assert result.rows_in == len(wanted)
    said = {
        name: job.rejected.get(f"data/t.tsv:{number + 2}", (None, ""))[0]
        for number, name in enumerate(wanted)
    }
    assert said == wanted
    assert b"hidden" not in b"".join(p.read_bytes() for p in job.output.rglob("*.parquet"))
    refused = [name for name, digest in job.outside.items() if digest.startswith("refused: ")]
    assert len([name for name in refused if "passwd" in name]) == 2

    allowed = Job(tmp_path, **options, allow=["."])
    allowed.plan()
    allowed.run("again")
    lost = {name for name, (reason, _) in allowed.rejected.items() if "outside" in reason}
    assert len(lost) == 7, "allow: lets in its folder, and nothing else"


def test_what_a_pattern_of_the_users_own_matches_is_let_in(tmp_path: Path) -> None:
    """Links too, as the caches of data tools have them: no table has named it."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "elsewhere.png").write_bytes(b"b")
    (tmp_path / "pictures" / "a.png").write_bytes(b"a")
    (tmp_path / "pictures" / "b.png").symlink_to("../elsewhere.png")
    for source in ("pictures/*.png", f"file://{tmp_path}/pictures/*.png"):
        job = Job(tmp_path, source=source, columns={"image": "path", "target": "name"})
        job.plan()
        job.run(f"scratch-{len(source)}")
        assert sorted(job.rows["target"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("folder", "locator", "is_let_in"),
    [
        ("s3://bucket/data", "x.png", True),
        ("s3://bucket//data", "x.png", True),
        ("s3://bucket/data", "sub/../x.png", True),
        ("s3://bucket/data", "s3://bucket/data/x.png", True),
        ("s3://bucket/data", "../x.png", False),
        ("s3://bucket/data", "s3://bucket/database/x.png", False),
        ("s3://bucket/data", "s3://bucket-of-others/x.png", False),
        ("s3://bucket/data", "%2e%2e/x.png", False),
        ("s3://bucket/data", "%252e%252e/x.png", False),
        ("s3://bucket/data", "x.png::file:///etc/passwd", False),
        ("s3://bucket/data", "/etc/passwd", False),
        ("s3://bucket/data", "file:///etc/passwd", False),
        ("local:///data", "local:///data/../etc/hostname::file:///x", False),
        ("s3://bucket/data", "http://127.0.0.1/x.png", False),
    ],
)
def test_rows_of_a_remote_table_name_only_what_is_beside_it(
    folder: str, locator: str, is_let_in: bool
) -> None:
    if is_let_in:
        assert Places(folder).url(locator)
    else:
        with pytest.raises(RowError, match="outside"):
            Places(folder).url(locator)


def test_a_link_that_is_replaced_by_a_file_is_planned_again(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("file\ten\nx.png\tx\ny.png?v=1\ty\n")
    (tmp_path / "y.png").write_bytes(b"y")
    (tmp_path / "x.png").symlink_to("/etc/hostname")
    options = {"columns": {"image": "file", "target": "en"}, "extract": {"image": "^[^?]+"}}
    job = Job(tmp_path, **options)
    job.plan()
    before = job.outside
    assert before["media x.png"] == "refused: file outside the table's folder"
    assert job.run("first").rows == 1
    (tmp_path / "x.png").unlink()
    (tmp_path / "x.png").write_bytes(b"x")
    job.plan()
    assert job.outside != before
    assert job.run("second").rows == 2


# ── Limits ───────────────────────────────────────────────────────────────────────────────────────


def limited_run(
    folder: Path, root: Path, megabytes: int
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Runs folder/job.yaml; returns its peak memory too, in MB, which must be below a limit."""
    # From a small process: a child of this one would begin with the peak of this one.
    code = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024);"
        "sys.exit(code)"
    )
    job = ["-m", "pipelines.run", str(folder / "job.yaml"), "--runs-dir", str(folder / "runs")]
    completed = subprocess.run(
        [sys.executable, "-c", code, sys.executable, *job],
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    peak = int(completed.stdout.rpartition("PEAK")[2])
    assert peak < megabytes, f"{peak} MB"
    return completed, peak


INGEST = """\
stages:
  rows: {use: ingest, source: SOURCE, columns: {text: zh, target: en}, OPTIONS}
"""


@pytest.mark.parametrize(
    ("name", "content", "options", "wanted"),
    [
        pytest.param("a.tsv.gz", lambda: gzip.compress(GOOD + b"x" * 300_000_000, 1),
                     "max_rejected: 1", "line too long", marks=pytest.mark.long),
        ("a.tsv", lambda: GOOD + b"x" * 150_000_000, "max_rejected: 1", "line too long"),
        pytest.param("a.jsonl", lambda: b'{"zh": "' + b"x" * 150_000_000,
                     "max_rejected: 1", "line too long", marks=pytest.mark.long),
        ("a.csv", lambda: b"zh,en\na,b\n" + b"x" * 150_000_000 + b"\nc,d\n", "max_rejected: 1",
         "line too long"),
        ("a.csv", lambda: b'zh,en\na,b\n"' + b"x" * 150_000_000 + b"\nc,d\n", "max_rejected: 1",
         "line too long"),
        pytest.param("a.json", lambda: b'["' + b"x" * 150_000_000 + b'"]', "max_rejected: 1",
         "max_document_bytes", marks=pytest.mark.long),
        ("a.json.gz", lambda: gzip.compress(b"[" + b" " * 300_000_000 + b"]", 1), "",
         "max_document_bytes"),
        ("a.tsv.gz", lambda: gzip.compress(GOOD + b"a\tb\n" * 5_000_000, 1),
         "max_unpacked_bytes: 1000000", "max_unpacked_bytes: 1,000,000"),
    ],
    ids=["gzip line", "line", "json line", "csv line", "csv quote", "json", "json bomb", "gzip"],
)  # fmt: skip
def test_bombs_take_little_memory_and_time(
    tmp_path: Path, root: Path, name: str, content: Callable[[], bytes], options: str, wanted: str
) -> None:
    (tmp_path / name).write_bytes(content())
    (tmp_path / "job.yaml").write_text(INGEST.replace("SOURCE", name).replace("OPTIONS", options))
    started = time.monotonic()
    completed, _ = limited_run(tmp_path, root, 600)
    assert time.monotonic() - started < 60
    rejected = [pl.read_parquet(p) for p in tmp_path.glob("runs/store/artifacts/*/rejected/*")]
    said = "".join(str(table.select("reason", "detail").rows()) for table in rejected)
    assert wanted in said + completed.stderr
    assert "Traceback" not in completed.stderr


# ── No usable row, and other damage ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.tsv", b"", "there is no row in a.tsv"),
        ("a.tsv", b"zh\ten\n", "there is no row in a.tsv"),
        ("a.tsv", b"source\ten\nx\ty\n",
         "missing column: a.tsv:2: 'zh' of 2 columns; the header has source, en"),
        ("a.csv", b"zh;en\nx;y\n", "'zh' of 1 columns; the header has zh;en"),
        ("a.tsv.gz", gzip.compress(GOOD, mtime=0)[:8], "unreadable file: a.tsv.gz:0: EOFError"),
        ("a.parquet", b"PAR1cut", "unreadable file: a.parquet:0: ArrowInvalid: Parquet"),
        ("a.parquet", {"zh": [1.5], "en": ["x"]}, "not text: a.parquet:1: 'zh' is float"),
        ("a.parquet", {"other": ["x"]}, "missing column: a.parquet:1: 'zh'"),
        ("a.json", b'{"zh": "a", "en": "b"}', "must be a list of records; for one per line"),
        ("a.json", b"[]", "there is no row in a.json"),
        ("a.jsonl", b"not json\n", "broken JSON: a.jsonl:1: Expecting value"),
        ("a.tsv", b"zh\ten\n\xff\xfe\tx\n", "broken UTF-8: a.tsv:2: byte 1"),
        ("a.tsv", b"zh\ten\n\tx\n", "empty text: a.tsv:2"),
    ],
)  # fmt: skip
def test_an_input_without_a_usable_row_says_why(
    tmp_path: Path, name: str, content: bytes | dict[str, Any], wanted: str
) -> None:
    if isinstance(content, dict):
        pl.DataFrame(content).write_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    for split in ({}, {"test": 5}):
        job = Job(tmp_path, source=name, split=split)
        with pytest.raises(ValueError) as caught:
            job.run(f"scratch-{len(split)}")
        assert wanted in str(caught.value)


def test_parquet_columns_of_every_type_become_text(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "zh": ["a"], "en": ["b"],
            "day": [moment.date()], "moment": [moment], "clock": [moment.time()],
            "price": [decimal.Decimal("1.50")], "length": [datetime.timedelta(seconds=90)],
            "raw": [b"\xff\x00"], "deep": [{"when": moment, "list": [b"x", None]}],
            "number": [1.5], "flag": [True],
        }
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    own = {name: name for name in ("day", "moment", "clock", "price", "length", "raw", "deep")}
    columns = COLUMNS | own | {"n": "number", "f": "flag"}
    job = Job(tmp_path, source="a.parquet", columns=columns)
    job.run()
    row = job.rows.row(0, named=True)
    assert {name: row[name] for name in [*own, "n", "f"]} == {
        "day": "2026-01-02", "moment": "2026-01-02T03:04:05", "clock": "03:04:05",
        "price": "1.50", "length": "90.0", "raw": "/wA=",
        "deep": '{"when": "2026-01-02T03:04:05", "list": ["eA==", null]}',
        "n": "1.5", "f": "true",
    }  # fmt: skip


@pytest.mark.parametrize("bad", [b'"never closed,x', b'a,"never closed', b'"x"",y'])
def test_a_quote_that_is_never_closed_loses_one_row(tmp_path: Path, bad: bytes) -> None:
    lines = [b"source %d,target %d" % (n, n) for n in range(41)]
    lines[20] = bad
    (tmp_path / "a.csv").write_bytes(b"zh,en\n" + b"\n".join(lines) + b"\n")
    job = Job(tmp_path, source="a.csv")
    result = job.run()
    assert (result.rows_in, result.rows) == (41, 40)
    assert job.rejected == {
        "a.csv:22": ("broken CSV", "a quote that opens in this line is never closed")
    }


def test_rows_of_a_csv_can_have_line_ends(tmp_path: Path) -> None:
    import csv

    rows = [("a\nb", "c"), ('d "e"\r\n', "f,g"), ("h", "i\n\n\nj"), ("k", "l")]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("zh", "en"), *rows, ("", "refused")])
    job = Job(tmp_path, source="a.csv", deduplicate="exact")
    job.run()
    assert sorted(job.rows.select("text", "target").iter_rows()) == sorted(rows)
    assert list(job.rejected) == ["a.csv:11"]


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ("[" * 90_000 + "]" * 90_000, "broken JSON"),
        ('{"zh": ' + "9" * 5000 + ', "en": "x"}', "broken JSON"),
        ('{"zh": "a" "en"}', "broken JSON"),
        ("nonsense", "broken JSON"),
        ("", "broken JSON"),
        ('{"zh": ["]", "}"], "en": "x"}', "not text"),
    ],
)
def test_a_bad_value_in_a_json_list_is_one_reject(
    tmp_path: Path, element: str, reason: str
) -> None:
    good = ['{"zh": "a, ]\\"", "en": "b"}', '{"zh": "c", "en": "d"}']
    (tmp_path / "a.json").write_text(f" [{good[0]}, {element} , {good[1]}] \n")
    job = Job(tmp_path, source="a.json")
    job.run()
    assert sorted(job.rows["target"]) == ["b", "d"]
    assert job.rejected["a.json:2"][0] == reason


def test_json_elements_are_those_of_pythons_parser(tmp_path: Path) -> None:
    """`json.loads` of the whole list is the reference."""
    from stages.ingest.structured import _elements

    values = [1, "a,]", {"x": [1, {"y": "}\\"}], "": None}, [], {}, [[], [1, [2]]], '\\"', True]
    for text in (json.dumps(values), json.dumps(values, indent=3).strip(), "[]", "[ ]", "[1]"):
        assert [json.loads(part) for part in _elements(text)] == json.loads(text)


# ── However much there is ────────────────────────────────────────────────────────────────────────


def test_the_records_do_not_depend_on_how_the_work_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"source {n % 700}{'!' * (n % 3)}\ttarget {n % 900}\tid{n % 2100}" for n in range(2500)
    ]
    (tmp_path / "a.tsv").write_text("zh\ten\tid\n" + "\n".join(lines) + "\n\tbad\tx\n")
    options: dict[str, Any] = {
        "columns": COLUMNS | {"id": "id"}, "split": {"test": 100, "valid": 0.1}, "shards": 3,
    }  # fmt: skip

    def made(scratch: str) -> dict[str, bytes]:
        job = Job(tmp_path, **options)
        job.result = job.run(scratch)  # type: ignore[attr-defined]
        return {
            str(p.relative_to(job.output)): p.read_bytes() for p in job.output.rglob("*.parquet")
        }

    whole = made("whole")
    assert len(whole) == 6
    monkeypatch.setattr("stages.ingest.units.RANGE_BYTES", 3000)
    monkeypatch.setattr("stages.ingest.work.BUCKET_BYTES", 2000)
    monkeypatch.setattr("stages.ingest.work.RANGE_BYTES", 5000)
    monkeypatch.setattr("stages.ingest.parsing.CHUNK_ROWS", 37)
    monkeypatch.setattr("stages.ingest.parsing.HELD_BYTES", 10_000)
    monkeypatch.setattr("stages.rows.rejects.CHUNK", 7)
    assert made("cut") == whole


@pytest.mark.long
def test_memory_does_not_grow_with_the_input(tmp_path: Path, root: Path) -> None:
    """For 2 GB, see benchmarks/memory.py. The smaller input already fills a bucket and a range of a
    shard: below that, memory grows until they are full."""
    peaks = []
    for rows in (600_000, 1_800_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        with (folder / "a.tsv").open("w") as file:
            file.write("zh\ten\n")
            file.writelines(
                f"source sentence {n} with words\ttarget sentence {n} with words\n"
                for n in range(rows)
            )
        (folder / "job.yaml").write_text(INGEST.replace("SOURCE", "a.tsv").replace("OPTIONS", ""))
        peaks.append(limited_run(folder, root, 600)[1])
    assert peaks[1] < 1.25 * peaks[0], peaks


# ── What a hostile reading found ─────────────────────────────────────────────────────────────────


def test_a_value_that_python_does_not_have_is_one_reject(tmp_path: Path) -> None:
    moments = pa.array([0, 10**18, 1, 2], pa.timestamp("us"))
    table = pa.table({"zh": list("abcd"), "en": list("abcd"), "when": moments})
    parquet.write_table(table, tmp_path / "a.parquet")
    job = Job(tmp_path, source="a.parquet", columns=COLUMNS | {"when": "when"})
    result = job.run()
    assert (result.rows, result.rejected) == (3, {"no such value": 1})
    assert list(job.rejected) == ["a.parquet:2"]


def test_a_file_that_fails_while_it_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.store import sources

    pl.DataFrame({"zh": ["a"] * 9, "en": ["b"] * 9}).write_parquet(tmp_path / "a.parquet")
    job = Job(tmp_path, source="a.parquet")
    job.plan()
    opened = sources.open_raw
    reads: list[int] = []

    class Failing:
        def __init__(self, file: Any) -> None:
            self.file = file

        def read(self, size: int) -> bytes:
            reads.append(size)
            if len(reads) > 3:
                raise ConnectionResetError("connection reset by peer")
            data: bytes = self.file.read(size)
            return data

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(sources, "open_raw", lambda url: Failing(opened(url)))
    with pytest.raises(SourceError, match="cannot be read: connection reset by peer"):
        job.run()


@pytest.mark.parametrize("text", ['["' + '\\"' * 1_000_000 + "]", '["' + "x" * 20_000_000 + '"]'])
def test_a_long_string_of_json_takes_linear_time(tmp_path: Path, root: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "job.yaml").write_text(
        INGEST.replace("SOURCE", "a.json").replace("OPTIONS", "max_rejected: 1")
    )
    started = time.monotonic()
    completed, _ = limited_run(tmp_path, root, 600)
    assert completed.returncode == 1 and time.monotonic() - started < 20


def test_files_that_break_off_count_by_files(tmp_path: Path) -> None:
    cut = gzip.compress(GOOD, mtime=0)[:-9]
    for name in "abc":
        (tmp_path / f"{name}.tsv.gz").write_bytes(cut if name == "a" else gzip.compress(GOOD))
    options = {"source": "*.tsv.gz", "deduplicate": "none"}
    assert Job(tmp_path, **options, max_rejected=0.4).run("few").rows >= 80
    with pytest.raises(ValueError, match=r"(?s)1 of 3 files cannot be read to their end.*EOFError"):
        Job(tmp_path, **options, max_rejected=0.3).run("many")


def test_a_cell_of_many_lines_is_one_cell(tmp_path: Path) -> None:
    cell = "\n".join(f"line {n}" for n in range(3000))
    long = "\n".join(f'say ""line"" {n}' for n in range(3000))
    text = f'zh,en\n"{cell}",one\n"{long}",too long\nthree,"{cell[:40]}"\n'
    (tmp_path / "a.csv").write_text(text)
    job = Job(tmp_path, source="a.csv", max_line_bytes=len(cell) + 100)
    assert job.run().rows == 2
    assert sorted(job.rows["text"]) == sorted([cell, "three"])
    limit = f"more than max_line_bytes: {len(cell) + 100:,}"
    assert job.rejected == {"a.csv:3002": ("line too long", limit)}


def test_a_header_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a\rb\nx,y\n")
    with pytest.raises(ValueError, match=r"a\.csv:1: the header is no line of CSV"):
        Job(tmp_path, source="a.csv").run()


def test_zip_files_and_other_encodings_are_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.csv.zip", "w") as file:
        file.writestr("x.csv", "zh,en\na,b\nc,d\n")
    job = Job(tmp_path, source="x.csv.zip", format="csv")
    job.plan()
    assert job.run("zip").rows == 2
    (tmp_path / "x.json").write_bytes(json.dumps([{"zh": "读", "en": "read"}]).encode("utf-16"))
    job = Job(tmp_path, source="x.json")
    job.run("json")
    assert job.rows["text"].to_list() == ["读"]


@pytest.mark.parametrize(
    "pattern", ["po/{language}.po", "{language}/x.po", "{language}/*.po", "po/*/{language}.po"]
)
def test_catalogues_of_a_language_belong_together(tmp_path: Path, pattern: str) -> None:
    import polib

    for language, word in (("de", "hallo"), ("fr", "bonjour")):
        for name in ("one", "two") if "*" in pattern else ("x",):
            catalogue = polib.POFile()
            catalogue.append(polib.POEntry(msgid=f"hello {name}", msgstr=f"{word} {name}"))
            path = tmp_path / pattern.replace("{language}", language).replace("*", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            catalogue.save(str(path))
    job = Job(tmp_path, source=pattern, format="gettext", columns={"text": "de", "target": "fr"})
    job.plan()
    job.run()
    assert all(
        target == text.replace("hallo", "bonjour")
        for text, target in job.rows.select("text", "target").iter_rows()
    )
    assert len(job.rows) == (2 if "*" in pattern else 1)


def test_scratch_that_lost_a_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut leaves it: names without content."""
    (tmp_path / "a.tsv").write_bytes(GOOD)
    whole = Job(tmp_path)
    whole.run("whole")
    job = Job(tmp_path)

    def die(*_: Any) -> None:
        raise KeyError("died")

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("stages.ingest.work.check_rejected", die)
        job.run("scratch")
    scratch = tmp_path / "scratch"
    files = sorted(path for path in scratch.rglob("*") if path.suffix in (".arrow", ".parquet"))
    for number, path in enumerate(files):
        if number % 2:
            path.write_bytes(b"")
        else:
            path.unlink()
    job.run("scratch")
    assert job.rows.equals(whole.rows)


def test_columns_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="columns are counted from 1"):
        IngestConfig.model_validate({"source": "a.tsv", "columns": {"text": 0, "target": 1}})


def test_a_file_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.tsv")).write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"a\\udcff\.tsv' is not UTF-8; rename the file"):
        Job(tmp_path, source="*.tsv").plan()
