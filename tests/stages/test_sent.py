"""What workers are sent: little, whatever the input is. Flink and Dataflow have limits for it."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipelines.planning.selection import Selection
from pipelines.reading.spec import load_pipeline
from pipelines.running.executor import Executor
from pipelines.store.runs_dir import RunsDir
from stages.ingest import work
from stages.score.counting import BatchStatistics

JOB = """\
name: sent
stages:
  rows:
    use: ingest
    source: rows.tsv
    columns: {text: source, target: target}
    split: {valid: 100, test: 200}
    shards: 4
  text: {records: rows, vocabulary: {size: 60}, filter: {max_ratio: null}}
"""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all Beam jobs, with what is in them: steps, pieces."""
    sizes: list[int] = []
    run = beam.Pipeline.run

    def measured(self: beam.Pipeline, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(self.to_runner_api(use_fake_coders=True).SerializeToString()))
        return run(self, *arguments, **options)

    monkeypatch.setattr(beam.Pipeline, "run", measured)
    return sizes


def jobs(folder: Path, rows: int, sent: list[int]) -> list[int]:
    """The sizes of the jobs of `ingest` and `text` for so many rows."""
    folder.mkdir()
    draw = random.Random(3)
    lines = ["source\ttarget"]
    for number in range(rows):
        words = " ".join(draw.choices("abcdefgh", k=6))
        lines.append(f"{number} {words}\t{words} {number}")
    (folder / "rows.tsv").write_text("\n".join(lines) + "\n")
    (folder / "job.yaml").write_text(JOB)
    spec = load_pipeline(folder / "job.yaml", [])
    sent.clear()
    assert Executor(spec, RunsDir(folder / "runs"), Selection(), "again").run() == 0
    return list(sent)


def test_a_job_does_not_grow_with_its_rows(sent: list[int], tmp_path: Path) -> None:
    few, many = (jobs(tmp_path / str(rows), rows, sent) for rows in (2_000, 40_000))
    assert len(few) == len(many) >= 7
    assert max(few) < 60_000
    assert all(abs(a - b) < 500 for a, b in zip(few, many, strict=True)), (few, many)


def test_a_piece_is_small(sent: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a bucket, of which there can be thousands, and each is read by all shards."""
    whole = jobs(tmp_path / "whole", 20_000, sent)
    monkeypatch.setattr(work, "BUCKET_BYTES", 4_000)
    monkeypatch.setattr("stages.ingest.units.RANGE_BYTES", 8_000)
    cut = jobs(tmp_path / "cut", 20_000, sent)
    size = (tmp_path / "cut" / "rows.tsv").stat().st_size
    units, buckets = size / 8_000, size / 4_000
    assert units > 80
    parse, group, split, write = (a - b for a, b in zip(cut[:4], whole[:4], strict=True))
    assert parse < 4_000 * units
    assert group < 400 * buckets and split < 400 * buckets
    assert write < 500, "it reads all of them, by an index"


def test_statistics_are_small(
    monkeypatch: pytest.MonkeyPatch, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """Elements between steps are of `score` alone."""
    sizes: list[int] = []
    statistics = BatchStatistics.__call__

    def measured(self: BatchStatistics, batch: Any) -> Iterator[Any]:
        for element in statistics(self, batch):
            sizes.append(len(pickle.dumps(element)))
            yield element

    monkeypatch.setattr(BatchStatistics, "__call__", measured)
    shutil.copytree(finished[1], tmp_path / "runs", symlinks=True)
    again = Selection(end="score", force={"score"})
    assert (
        Executor(load_pipeline(finished[0], []), RunsDir(tmp_path / "runs"), again, "").run() == 0
    )
    assert sizes and max(sizes) < 10_000
