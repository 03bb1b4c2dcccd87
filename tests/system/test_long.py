"""What takes too long for every change: `make test-long`.

Hundreds of stops at random moments of a whole job, runs side by side, collections beside runs, and
disks of every size: always the right exit code, and in the end the same bytes.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Bytes = Callable[[Path], dict[str, bytes]]
STOPS, TOGETHER = 200, 100

pytestmark = pytest.mark.long


def command(job: Path, runs: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.run", str(job), "--runs-dir", str(runs), *arguments]


def start(root: Path, job: Path, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(job, runs, *arguments), cwd=root, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def newest(home: Path) -> dict[str, Any]:
    path = max(path for path in home.glob("*/run.json") if not path.parent.is_symlink())
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@pytest.mark.parametrize("workers", [1, 2])
def test_stops_at_random_moments_end_in_the_same_bytes(
    tmp_path: Path,
    root: Path,
    small_job: Callable[..., Path],
    run_pipeline: Run,
    artifact_bytes: Bytes,
    workers: int,
) -> None:
    job = small_job(tmp_path, beam=f"{{direct_num_workers: {workers}}}")
    started = time.monotonic()
    run_pipeline(job, "--runs-dir", tmp_path / "whole")
    seconds = time.monotonic() - started
    expected = artifact_bytes(tmp_path / "whole")
    chance = random.Random(workers)
    runs, landed = tmp_path / "stopped", 0
    kinds = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    for number in range(STOPS // 2):
        kind = kinds[number % 3]
        process = start(root, job, runs)
        try:
            process.wait(timeout=chance.uniform(0.1, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
        _, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors, errors
        if process.returncode == 0:
            assert artifact_bytes(runs) == expected
            shutil.rmtree(runs)
            continue
        landed += 1
        # Before the run begins, a signal ends the process as it ends any program.
        assert process.returncode in (-kind, 128 + kind), errors
        if process.returncode > 0 and list(runs.glob("small/*/run.json")):
            assert newest(runs / "small")["status"] in ("stopped", "complete")
    assert landed > STOPS // 5
    run_pipeline(job, "--runs-dir", runs)
    assert artifact_bytes(runs) == expected
    assert not list((runs / "store" / "work").iterdir())
    assert not list(runs.glob("**/*.tmp"))


def test_two_runs_at_once(
    tmp_path: Path, root: Path, tiny_job: Path, artifact_bytes: Bytes
) -> None:
    """Of one pipeline: one runs. Of two that share results: both end, with the same bytes."""
    other = tiny_job.with_name("other.yaml")
    other.write_text(tiny_job.read_text().replace("name: job", "name: other"))
    for number in range(TOGETHER):
        runs = tmp_path / f"runs-{number}"
        size = f"first.size={number + 1}"
        jobs = (tiny_job, tiny_job if number % 2 else other)
        processes = [start(root, job, runs, "--set", size) for job in jobs]
        errors = [process.communicate(timeout=120)[1] for process in processes]
        codes = sorted(process.returncode for process in processes)
        assert codes in ([0, 75], [0, 0]), errors
        if number % 2 == 0:
            assert codes == [0, 0], errors
        assert len(artifact_bytes(runs)) == 4
        for job in {job.stem for job in jobs}:
            assert newest(runs / job)["status"] == "complete"
            assert (runs / job / "latest").resolve().name == newest(runs / job)["run"]
        shutil.rmtree(runs)


def test_a_run_and_a_collection_at_once(tmp_path: Path, root: Path, tiny_job: Path) -> None:
    """Whatever a run that ended well has used is there, and as it was stored."""
    runs, chance = tmp_path / "runs", random.Random(1)
    for number in range(TOGETHER):
        # Every second run finds its results; the others make new ones.
        process = start(root, tiny_job, runs, "--set", f"second.size={number // 2 + 1}")
        time.sleep(chance.uniform(0, 0.8))
        collected = subprocess.run(
            [sys.executable, "-m", "pipelines.collect", str(runs), "--keep", "1", "--runs"],
            cwd=root, capture_output=True, text=True,
        )  # fmt: skip
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert collected.returncode in (0, 2), collected.stderr  # 2: there is no folder yet
        record = newest(runs / "job")
        assert record["status"] == "complete"
        for stage in record["stages"].values():
            assert (runs / stage["artifact"] / "manifest.json").exists(), number
    verified = subprocess.run(
        [sys.executable, "-m", "pipelines.verify", str(runs)], cwd=root, capture_output=True
    )
    assert verified.returncode == 0
    assert len(list(runs.glob("store/artifacts/*"))) <= 6, "the store does not grow for ever"
    assert len(list(runs.glob("store/leases/*"))) <= 12
    assert len(list(runs.glob("job/*/run.json"))) <= 5


def test_a_disk_that_is_full_at_any_moment(
    small_job: Callable[..., Path],
    run_pipeline: Run,
    artifact_bytes: Bytes,
    small_disk: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    job = small_job(tmp_path)
    run_pipeline(job, "--runs-dir", tmp_path / "whole")
    expected = artifact_bytes(tmp_path / "whole")
    full = 0
    for kilobytes in [40, 80, 120, 160, 200, *range(240, 3000, 120)]:
        place = small_disk(kilobytes * 1024)
        completed = run_pipeline(job, "--runs-dir", place / "runs", code=None)
        errors = completed.stderr
        if completed.returncode:
            full += 1
            assert completed.returncode == 1, errors
            assert "Traceback" not in errors, errors
            assert errors.splitlines()[-1].startswith("to continue from here: python -m"), errors
            assert "make room on the disk of" in errors, errors
            for path in place.glob("runs/small/*/run.json"):
                assert json.loads(path.read_text())["status"] == "failed"
        subprocess.run(["mount", "-o", "remount,size=40m", str(place)], check=True)
        run_pipeline(job, "--runs-dir", place / "runs")
        assert artifact_bytes(place / "runs") == expected
    assert full > 5


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_a_clock_that_jumps(tmp_path: Path, root: Path, tiny_job: Path) -> None:
    """Back and forth by years between runs: the last run is `latest`, keeps its results when
    garbage is collected, and is the one that the plan compares with."""
    runs = tmp_path / "runs"
    moments = ["2030-01-01", "2020-01-01", "2026-06-01", "2020-01-02", "2035-01-01", "2021-01-01"]
    for number, moment in enumerate(moments):
        size = f"second.size={number + 1}"
        at = ["faketime", f"{moment} 12:00:00"]
        subprocess.run(
            [*at, *command(tiny_job, runs, "--set", size)], cwd=root, check=True,
            capture_output=True, timeout=120,
        )  # fmt: skip
        record = newest(runs / "job")
        assert (runs / "job" / "latest").resolve().name == record["run"]
        assert record["started"].startswith(moment)
        collect = [sys.executable, "-m", "pipelines.collect", str(runs), "--keep", "1"]
        subprocess.run([*at, *collect], cwd=root, check=True, capture_output=True)
        assert len(list(runs.glob("store/artifacts/*"))) == 2
        planned = subprocess.run(
            [*at, *command(tiny_job, runs, "--set", size, "--plan")], cwd=root, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        assert planned.stdout.count("cached") == 2, planned.stdout
