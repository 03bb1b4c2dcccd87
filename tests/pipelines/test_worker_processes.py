"""Persistent worker processes: jobs that succeed, fail and die, and the end of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.running.beam_jobs import BeamJobs, Ticks
from pipelines.running.events import Events

JOB = """
from pathlib import Path
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from test_worker_processes import Place, Process, asleep
beam = BeamJobs({"direct_num_workers": 2}, Events(None))
folder = Path(__import__("sys").argv[1])
places = [Place(str(n), str(folder)) for n in range(2)]
beam.map("sleep", places, asleep, Process, folder / "scratch", total=2, unit="items")
"""


@dataclass(frozen=True)
class Place:
    name: str
    folder: str = ""


@dataclass(frozen=True)
class Process:
    number: int


def who(place: Place, ticks: Ticks) -> Process:
    print("steps may print")
    time.sleep(0.3)
    return Process(os.getpid())


def broken(place: Place, ticks: Ticks) -> Process:
    raise ValueError(f"item {place.name} is broken")


def killed(place: Place, ticks: Ticks) -> Process:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def asleep(place: Place, ticks: Ticks) -> Process:
    (Path(place.folder) / f"{place.name}.pid").write_text(str(os.getpid()))
    time.sleep(600)
    raise AssertionError


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[int]]:
    beam = BeamJobs({"direct_num_workers": 2}, Events(None))
    places = [Place(f"{n}") for n in range(6)]

    def run(function: Callable[[Place, Ticks], Process], label: str) -> list[int]:
        processes = beam.map(
            label, places, function, Process, tmp_path, total=len(places), unit="items"
        )
        return [process.number for process in processes]

    return run


def test_two_processes_serve_one_job_after_another(run: Callable[..., list[int]]) -> None:
    first, second = run(who, "first"), run(who, "second")
    assert len(set(first)) == 2 and set(first) == set(second)
    assert os.getpid() not in first


def test_a_process_that_died_without_a_job_is_replaced(run: Callable[..., list[int]]) -> None:
    before = set(run(who, "before"))
    dead = before.pop()
    os.kill(dead, signal.SIGKILL)
    time.sleep(0.2)
    after = set(run(who, "after"))
    assert len(after) == 2 and dead not in after and before < after


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Beam's
@pytest.mark.parametrize(
    ("function", "error"),
    [(broken, "item . is broken"), (killed, r"worker process died \(signal 9\)")],
)
def test_a_job_that_fails_says_why_and_the_next_one_has_new_processes(
    run: Callable[..., list[int]], function: Callable[[Place, Ticks], Process], error: str
) -> None:
    before = run(who, "before")
    with pytest.raises(RuntimeError, match=error):
        run(function, "failing")
    assert not set(before) & set(run(who, "after"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    files = [tmp_path / "0.pid", tmp_path / "1.pid"]
    wait(lambda: all(file.exists() and file.read_text() for file in files))
    workers = [int(file.read_text()) for file in files]
    assert all(map(alive, workers)) and len({*workers, process.pid}) == 3
    process.kill()
    process.wait()
    wait(lambda: not any(map(alive, workers)))


def alive(process: int) -> bool:
    """Whether a process runs; a zombie, which ended but was not waited for, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen in {seconds} s"
        time.sleep(0.05)
