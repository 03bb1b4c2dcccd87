"""SIGKILL at random moments, of the run or of a machine that works for it: a job with every stage,
on two other machines, ends in the same bytes. `make test-long`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Network

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("KILLS", "100"))
LONGEST = 24.0
"""Seconds until a kill."""
IMPATIENT = """
import sys
from pipelines.store import leases
leases.BEAT, leases.DEAD = 0.5, 4.0
from pipelines.run import main
sys.exit(main(sys.argv[1:]))
"""
"""A run that takes others for dead after seconds, so that the next run need not wait a minute."""


def differing(made: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Which files are not the same, with the first lines that are not."""
    told = sorted(made.keys() ^ expected.keys())
    for name in sorted(made.keys() & expected.keys()):
        pairs = zip(made[name].split(b"\n"), expected[name].split(b"\n"), strict=False)
        told += [f"{name}: {a!r} {b!r}" for a, b in pairs if a != b][:5]
    return told


@pytest.mark.parametrize("shared", ["a folder", "an object store"])
def test_kills_of_runs_and_of_machines_end_in_the_same_bytes(
    shared: str,
    network: Network,
    senses: Callable[[Path], Path],
    run_pipeline: Callable[..., object],
    artifact_bytes: Callable[[Path], dict[str, bytes]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    job, cache = senses(tmp_path), tmp_path / "cache"
    url = request.getfixturevalue("shared_nothing") if shared == "an object store" else None
    often = ("--set", "train.checkpoint_every=5")
    run_pipeline(job, "--runs-dir", tmp_path / "whole", *often)
    expected = artifact_bytes(tmp_path / "whole")
    cache.mkdir(exist_ok=True)
    hidden = [cache, tmp_path / "whole"] if url else []
    for number in (1, 2):
        network.serve(number, hidden)
    draw = random.Random(shared)
    killed = {"run": 0, "host 1": 0, "host 2": 0}
    rounds = 0

    def begin() -> subprocess.Popen[str]:
        runs = f"{url}-{rounds}" if url else str(tmp_path / f"runs-{rounds}")
        words = [str(job), "--runs-dir", runs, *network.beam(1, 2), "--wait", "60", *often]
        command = network.command(0, [], sys.executable, "-c", IMPATIENT, *words)
        return subprocess.Popen(command, cwd=network.root, stderr=subprocess.PIPE, text=True)

    def finished() -> Path:
        """The results; those of an object store are fetched."""
        if not url:
            return tmp_path / f"runs-{rounds}"
        environment = f"{url}-{rounds}"
        verify = [sys.executable, "-m", "pipelines.verify", environment]
        subprocess.run(network.command(0, [], *verify), cwd=network.root, check=True)
        (folder,) = [path for path in cache.iterdir() if (path / "senses" / "latest").exists()]
        return folder

    while sum(killed.values()) < KILLS:
        process, ended_by_us = begin(), False
        while not ended_by_us:
            until = time.monotonic() + draw.uniform(0.5, LONGEST)
            while time.monotonic() < until and process.poll() is None:
                time.sleep(0.02)
            if process.poll() is not None:
                break
            target = draw.choice(["run", "host 1", "host 2"])
            killed[target] += 1
            if target == "run":
                process.kill()
                ended_by_us = True
            else:
                # What it did is lost or goes on elsewhere; the machine is back a moment later.
                network.kill(int(target[-1]))
                network.serve(int(target[-1]), hidden)
        _, errors = process.communicate(timeout=240)
        assert "Traceback" not in errors, errors
        if process.returncode == 0:
            made = artifact_bytes(finished())
            assert made == expected, differing(made, expected)
            shutil.rmtree(cache if url else tmp_path / f"runs-{rounds}")
            cache.mkdir(exist_ok=True)
            rounds += 1
        else:
            assert process.returncode == (-9 if ended_by_us else 1), errors
    process = begin()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    made = artifact_bytes(finished())
    assert made == expected, differing(made, expected)
    print(shared, killed, f"in {rounds + 1} runs")
