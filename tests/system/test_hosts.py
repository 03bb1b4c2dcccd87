"""Workers on other machines that fail, or are not what they should be. That two hosts make the same
bytes as one machine is in test_multimodal.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.running.pools import LOST

if TYPE_CHECKING:
    from tests.system.conftest import Network


def slow(runs: Path, *settings: str) -> list[str | Path]:
    options = [word for setting in settings for word in ("--set", setting)]
    return ["--runs-dir", runs, "--set", "second.does=slow", *options]


def until_it_works(process: subprocess.Popen[str], runs: Path) -> None:
    while not list(runs.glob("store/work/second-*/scratch/s/*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_a_host_that_is_killed_is_no_hang(
    network: Network, tiny_job: Path, artifact_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    """Without retries an error; with them, the other host does the rest."""
    whole, runs = tiny_job.parent / "whole", tiny_job.parent / "runs"
    size = "second.size=300"
    for number in (1, 2):
        network.serve(number)
    network.run(tiny_job, *slow(whole, size))
    process = network.start(tiny_job, *slow(runs, size), *network.beam(1, 2))
    until_it_works(process, runs)
    network.kill(1)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and time.monotonic() - killed < LOST + 15, errors
    assert f"the worker at {network.address(1)} is lost" in errors
    said = network.run(tiny_job, *slow(runs, size), *network.beam(1, 2))
    assert f"the worker pool {network.address(1)} does not answer" in said
    assert f"workers are on {network.host(2)}\n" in said
    assert artifact_bytes(runs) == artifact_bytes(whole)


@pytest.mark.long
def test_a_network_that_is_cut_is_no_hang(
    network: Network, tiny_job: Path, artifact_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    whole, runs = tiny_job.parent / "whole", tiny_job.parent / "runs"
    size = "second.size=700"
    for number in (1, 2):
        network.serve(number)
    network.run(tiny_job, *slow(whole, size))
    process = network.start(tiny_job, *slow(runs, size, "retries=1"), *network.beam(1, 2))
    until_it_works(process, runs)
    network.cut(1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"the worker at {network.address(1)} is lost: its machine does not" in errors
    assert artifact_bytes(runs) == artifact_bytes(whole)


def test_nobody_answers(network: Network, tiny_job: Path) -> None:
    started = time.monotonic()
    said = network.run(tiny_job, *slow(tiny_job.parent / "runs"), *network.beam(1, 2), code=1)
    assert time.monotonic() - started < 30
    assert "no worker pool answers" in said and network.address(2) in said


def refused(network: Network, job: Path, *numbers: int) -> str:
    """What a run says that ends before its first stage because of a machine."""
    runs = job.parent / "runs"
    started = time.monotonic()
    said = network.run(job, *slow(runs), *network.beam(*numbers), code=1)
    assert time.monotonic() - started < 60
    assert not list(runs.glob("store/artifacts/*")), "nothing was begun"
    collect = [sys.executable, "-m", "pipelines.collect", str(runs), "--unfinished"]
    subprocess.run(collect, cwd=network.root, check=True)
    assert not list(runs.glob("store/work/*")), "and nothing stays that nobody removes"
    return said


def test_a_host_without_the_store(network: Network, tiny_job: Path) -> None:
    (tiny_job.parent / "runs").mkdir()
    network.serve(1)
    network.serve(2, hidden=[tiny_job.parent / "runs"])
    said = refused(network, tiny_job, 1, 2)
    assert f"machine {network.host(2)} cannot work for this run: it does not see " in said


def test_a_host_with_another_version(network: Network, tiny_job: Path, tmp_path: Path) -> None:
    other = tmp_path / "packages" / "polars-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: polars\nVersion: 9.9.9\n")
    text = tiny_job.read_text()
    stage = tiny_job.parent / "tiny_stages.py"
    stage.write_text(stage.read_text().replace(
        'output = "things"', 'output = "things"\n    libraries = ("polars",)'))  # fmt: skip
    tiny_job.write_text(text)
    network.serve(1, path=[other.parent])
    said = refused(network, tiny_job, 1)
    assert f"machine {network.host(1)} cannot work for this run: it has polars 9.9.9, and" in said


def test_a_host_with_other_code(
    network: Network, tiny_job: Path, root: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "code"
    for name in ("pipelines", "stages", "model", "exports"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "pipelines" / "store" / "files.py"
    changed.write_text(changed.read_text().replace("indent=2", "indent=3"))
    network.serve(1, code=copy, path=[copy])
    said = refused(network, tiny_job, 1)
    assert "it has other code in pipelines/store/files.py" in said


def test_a_host_without_the_input(
    network: Network, small_job: Callable[..., Path], tmp_path: Path
) -> None:
    """The store is there and the sources are not: no row may be lost without a word."""
    (tmp_path / "job").mkdir()
    job = small_job(tmp_path / "job")
    runs = tmp_path / "runs"
    network.serve(1)
    network.serve(2, hidden=[tmp_path / "job"])
    said = network.run(job, "--runs-dir", runs, *network.beam(2), code=1)
    assert "copy.tsv is missing; do all workers have the file?" in said
    assert not list(runs.glob("store/artifacts/*"))
    network.run(job, "--runs-dir", runs, "--to", "rows", *network.beam(1))
