"""Runs whose folder is an object store, from machines that share nothing else.

What such a run must be like is a run in a folder: the same bytes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.store.leases import DEAD
from pipelines.store.runs_dir import CACHE
from tests.object_store import BUCKET, Asked, Faults, ObjectStore, object_store

if TYPE_CHECKING:
    from tests.conftest import Run
    from tests.system.conftest import Network

pytest.importorskip("moto")
pytest.importorskip("s3fs")
Bytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as made:
        yield made


class Machine:
    """A machine with a cache of its own."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        self.cache, self.url = folder / f"cache-{name}", url

    @property
    def runs(self) -> Path:
        """Where its copies are."""
        (folder,) = self.cache.iterdir()
        return folder

    def environment(self) -> dict[str, str]:
        return {**os.environ, CACHE: str(self.cache)}

    def command(self, module: str, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", f"pipelines.{module}", *map(str, words)]

    def does(self, module: str, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            self.command(module, *words), env=self.environment(), capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def starts(self, job: Path, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command("run", job, "--runs-dir", self.url, *words),
            env=self.environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, job: Path, *words: str, code: int = 0) -> str:
        return self.does("run", job, "--runs-dir", self.url, *words, code=code)


@pytest.fixture
def machine(
    server: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    request: pytest.FixtureRequest,
) -> Callable[[str], Machine]:
    monkeypatch.chdir(root)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.proxy.faults = Faults()
    url = f"s3://{BUCKET}/{re.sub('[^a-z]', '-', request.node.name)}"
    return lambda name: Machine(tmp_path, name, url)


def test_the_same_bytes_through_faults(
    server: ObjectStore,
    machine: Callable[[str], Machine],
    finished: tuple[Path, Path],
    artifact_bytes: Bytes,
) -> None:
    """One request in twelve fails, on the first machine and on the second, which makes nothing
    again; then what people do with finished runs."""
    job, runs = finished
    server.faults.some(seed=5, share=1 / 12)
    one, two = machine("1"), machine("2")
    said = one.run(job)
    assert f"report: {one.runs}" in said
    assert artifact_bytes(one.runs) == artifact_bytes(runs)
    said = two.run(job)
    assert said.count(": cached") == len(list((runs / "store" / "artifacts").iterdir()))
    assert sum(server.faults.made.values()) > 20 and len(server.faults.made) >= 5
    server.faults.choose = lambda asked: None
    fetched = artifact_bytes(two.runs)
    assert fetched and fetched.items() <= artifact_bytes(runs).items()
    report = "small/latest/report/index.html"
    assert (two.runs / report).stat().st_size > 10_000
    assert len({path.name for path in (two.runs / "small").glob("2*")}) == 2

    three = machine("3")
    assert "0 problems" in three.does("verify", one.url)
    assert "2 runs" in three.does("report", one.url)
    assert three.does("missing", f"{one.url}/small", code=2).count("give --from DATE") == 1
    removed = three.does("collect", one.url, "--keep", "1", "--runs")
    assert removed.count("removed") == 1, "the older run, and no result"
    assert "0 problems" in three.does("verify", one.url)
    four = machine("4")
    assert four.run(job).count(": cached") == said.count(": cached")
    assert len({path.name for path in (four.runs / "small").glob("2*")}) == 2


@pytest.mark.parametrize(
    ("number", "waits"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGKILL, DEAD, marks=pytest.mark.long)],
)
def test_training_goes_on_on_another_machine(
    number: int,
    waits: float,
    server: ObjectStore,
    machine: Callable[[str], Machine],
    small_job: Callable[..., Path],
    run_pipeline: Run,
    artifact_bytes: Bytes,
    tmp_path: Path,
) -> None:
    """The first is gone with its disk, in the middle of its training. One that could not say so is
    given some time to show that it lives."""
    job = small_job(tmp_path, steps=60)
    words = ("--to", "train", "--set", "train.checkpoint_every=10")
    run_pipeline(job, "--runs-dir", tmp_path / "runs", *words)
    one, two = machine("1"), machine("2")
    saved: list[str] = []

    def choose(asked: Asked) -> str | None:
        if "kept/checkpoint" in asked.path:
            saved.append(asked.method)
        return None

    server.faults.choose = choose
    process = one.starts(job, *words)
    while saved.count("PUT") < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate()
    saved.clear()
    started = time.monotonic()
    said = two.run(job, *words, "--wait", "100")
    assert ("waiting for another run of pipeline 'small'" in said) == bool(waits)
    assert "GET" in saved, "it has the checkpoint"
    assert saved.count("PUT") < 5, "and does not train from the beginning"
    assert waits <= time.monotonic() - started < waits + 60
    expected, fetched = artifact_bytes(tmp_path / "runs"), artifact_bytes(two.runs)
    assert fetched.items() <= expected.items(), "it fetches what it needs, and no more"
    trained = {name for name in expected if name.startswith("train-")}
    assert trained and trained <= fetched.keys()
    first, *_ = sorted(two.runs.glob("small/2*/run.json"))
    assert '"status": "stopped"' in first.read_text()
    assert ("killed, or" in first.read_text()) == bool(waits)


def test_two_machines_at_a_time(
    machine: Callable[[str], Machine], tiny_job: Path, server: ObjectStore
) -> None:
    """The second is told at once that the first lives; of runs of other pipelines, one makes what
    both need, and the other waits."""
    one, two = machine("1"), machine("2")
    slow = ("--set", "second.does=slow", "--set", "second.size=300")
    first = one.starts(tiny_job, *slow)
    while not list(one.cache.glob("*/job/*/run.json")):
        time.sleep(0.05)
    refused = two.run(tiny_job, *slow, code=75)
    assert "another run of pipeline 'job' holds" in refused
    said = two.run(tiny_job, *slow, "--set", "name=other")
    assert "waiting for another run that is making the same result" in said
    assert first.wait(60) == 0
    record = next(two.runs.glob("other/2*/run.json")).read_text()
    assert "made by another run meanwhile" in record


def test_a_store_that_is_away_is_no_hang(
    server: ObjectStore,
    machine: Callable[[str], Machine],
    tiny_job: Path,
) -> None:
    """A run says so, and the next goes on."""
    one = machine("1")
    slow = ("--set", "second.does=slow", "--set", "second.size=40")
    process = one.starts(tiny_job, *slow)
    while not list(one.cache.glob("*/store/work/second-*/scratch/s/*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    server.faults.away = True
    time.sleep(4)
    server.faults.away = False
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert machine("2").run(tiny_job, *slow).count("cached") == 2


def test_keys_that_may_only_read(
    server: ObjectStore, machine: Callable[[str], Machine], tiny_job: Path
) -> None:
    machine("1").run(tiny_job)
    server.faults.choose = lambda asked: None if asked.method in ("GET", "HEAD") else "403"
    two = machine("2")
    started = time.monotonic()
    said = two.run(tiny_job, code=1)
    assert time.monotonic() - started < 20, "nothing that is refused is tried again"
    assert "Traceback" not in said
    assert re.search(r"the run cannot be recorded in .*: PermissionError: ", said), said
    assert "cached" in two.run(tiny_job, "--plan")


@pytest.mark.long
def test_a_host_that_is_killed(
    network: Network,
    shared_nothing: str,
    tiny_job: Path,
    artifact_bytes: Bytes,
    tmp_path: Path,
    run_pipeline: Run,
) -> None:
    """What it had done is there for the other."""
    slow = ["--set", "second.does=slow", "--set", "second.size=300"]
    run_pipeline(tiny_job, "--runs-dir", tmp_path / "runs", *slow)
    (tmp_path / "cache").mkdir()
    for number in (1, 2):
        network.serve(number, hidden=[tmp_path / "cache", tmp_path / "runs"], path=[tmp_path])
    retried = [*slow, "--set", "second.retries=1"]
    process = network.start(tiny_job, "--runs-dir", shared_nothing, *retried, *network.beam(1, 2))
    while not list((tmp_path / "cache").glob("*/store/work/second-*/scratch/s")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(6)  # workers have started, and are not half done
    network.kill(1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"the worker at {network.address(1)} is lost" in errors
    (cache,) = (tmp_path / "cache").iterdir()
    assert artifact_bytes(cache) == artifact_bytes(tmp_path / "runs")


@pytest.mark.long
def test_a_host_without_the_object_store(
    network: Network, shared_nothing: str, tiny_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        network.serve(1)
    started = time.monotonic()
    said = network.run(tiny_job, "--runs-dir", shared_nothing, "--set", "second.does=slow",
                       *network.beam(1), code=1)  # fmt: skip
    assert time.monotonic() - started < 100
    assert f"machine {network.host(1)} cannot work for this run: it does not see s3://" in said
