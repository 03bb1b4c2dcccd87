"""SIGKILL at any moment, then the same command again: the same bytes as if nothing had happened.

`make test-long` stops jobs more often, in other ways too."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

KILLS = 1
START = 3.0
"""Seconds until a run has begun."""


def test_killed_at_random_moments_ends_in_the_same_bytes(
    tmp_path: Path,
    root: Path,
    finished: tuple[Path, Path],
    run_pipeline: Callable[..., subprocess.CompletedProcess[str]],
    artifact_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    job, runs = finished
    record = json.loads((runs / "small" / "latest" / "run.json").read_text())
    seconds = sum(stage["seconds"] for stage in record["stages"].values())
    expected = artifact_bytes(runs)
    assert len(expected) > 20

    moments = random.Random(11)
    command = [
        sys.executable,
        "-m",
        "pipelines.run",
        str(job),
        "--runs-dir",
        str(tmp_path / "killed"),
    ]
    landed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            # After the imports, during which there is nothing to interrupt, and before the end.
            process.wait(timeout=START + moments.uniform(0.1, 0.7) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            landed += 1
        else:
            # The run ended before the kill; start over, so that every kill interrupts work.
            assert process.returncode == 0
            assert artifact_bytes(tmp_path / "killed") == expected
            (tmp_path / "killed").rename(tmp_path / f"done-{landed}-{time.monotonic_ns()}")
    assert landed
    run_pipeline(job, "--runs-dir", tmp_path / "killed")
    assert artifact_bytes(tmp_path / "killed") == expected
