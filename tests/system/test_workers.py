"""One worker and two, in this process and in several: the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "beam",
    [
        "{direct_num_workers: 2}",
        pytest.param(
            "{direct_num_workers: 2, direct_running_mode: multi_threading}",
            marks=pytest.mark.long,
        ),
    ],
)
def test_workers_do_not_change_a_byte(
    tmp_path: Path,
    finished: tuple[Path, Path],
    small_job: Callable[..., Path],
    run_pipeline: Callable[..., subprocess.CompletedProcess[str]],
    artifact_bytes: Callable[[Path], dict[str, bytes]],
    beam: str,
) -> None:
    job = small_job(tmp_path, beam=beam)
    run_pipeline(job, "--runs-dir", tmp_path / "runs")
    assert artifact_bytes(tmp_path / "runs") == artifact_bytes(finished[1])
