"""What many tests need: a command line to call, and small jobs on generated digits."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def run_pipeline() -> Run:
    """Calls `python -m pipelines.run` as a user does, and returns what it printed."""

    def run(*arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.run", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def digits() -> Callable[..., Path]:
    """Writes a TSV of digit strings and what a task makes of them."""

    def write(folder: Path, task: str, rows: int, longest: int = 8, seed: int = 3) -> Path:
        source = random.Random(seed)
        make: dict[str, Callable[[list[str]], list[str]]] = {
            "copy": lambda row: row,
            "reverse": lambda row: row[::-1],
            "sort": sorted,
        }
        seen: set[str] = set()
        while len(seen) < rows:
            length = source.randint(3, longest)
            seen.add(" ".join(source.choice("0123456789") for _ in range(length)))
        lines = ["source\ttarget"]
        lines += [f"{row}\t{' '.join(make[task](row.split()))}" for row in sorted(seen)]
        path = folder / f"{task}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


SMALL = """\
name: {name}
seed: 5
beam: {beam}
stages:
  rows:
    use: ingest
    source: {source}
    columns: {{text: source, target: target}}
    split: {{valid: 20, test: 30}}
    deduplicate: exact
    shards: 3
  text: {{records: rows, vocabulary: {{size: 20, shared: true}}}}
  train:
    features: text
    model: {{use: transformer, layers: 1, width: 32, heads: 2, feed_forward: 64}}
    steps: {steps}
    batch_tokens: 600
    warmup: 10
    validate_every: 10
    checkpoint_every: 5
    average: 2
    precision: fp32
  export: {{model: train, features: text, parity_rows: 10}}
  generate: {{graphs: export, features: text}}
  score: {{predictions: generate}}
  report: {{scores: score}}
"""


@pytest.fixture(scope="session")
def small_job(digits: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a whole job on 300 digit strings that takes some seconds."""

    def write(folder: Path, name: str = "small", steps: int = 20, beam: str = "{}") -> Path:
        digits(folder, "copy", 300)
        path = folder / f"{name}.yaml"
        path.write_text(SMALL.format(name=name, steps=steps, beam=beam, source="copy.tsv"))
        return path

    return write


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, small_job: Callable[..., Path], run_pipeline: Run
) -> tuple[Path, Path]:
    """A small job that has run once: its file and its runs folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    job = small_job(folder)
    run_pipeline(job, "--runs-dir", folder / "runs")
    return job, folder / "runs"


@pytest.fixture(scope="session")
def read_record() -> Callable[[Path], dict[str, Any]]:
    """The record of the newest run of a pipeline."""

    def read(home: Path) -> dict[str, Any]:
        newest = max(path for path in home.glob("*/run.json") if not path.parent.is_symlink())
        record: dict[str, Any] = json.loads(newest.read_text())
        return record

    return read


@pytest.fixture(scope="session")
def artifact_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Every file of every artifact in a runs folder, by stage and name."""

    def read(runs: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(runs / "store" / "artifacts")): path.read_bytes()
            for path in sorted((runs / "store" / "artifacts").rglob("*"))
            if path.is_file()
        }

    return read
