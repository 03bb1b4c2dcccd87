"""Worker pools at this machine's own address; for other machines see tests/system/test_hosts.py."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from pipelines.contracts.addresses import addresses_of, pools_of
from pipelines.contracts.base import Json
from pipelines.internals.apache_beam import (
    BeamFnExternalWorkerPoolServicer,
    messages,
    services,
)
from pipelines.running.beam_jobs import BeamJobs, Ticks, available_cpus, worker_threads
from pipelines.running.events import Events
from pipelines.running.pools import address_towards, answering
from pipelines.running.probe import Equipment, differences, equipment
from pipelines.running.workers import WorkerDiedError


@dataclass(frozen=True)
class Item:
    name: str


@dataclass(frozen=True)
class Seen:
    process: int
    parent: int
    threads: str


def look(item: Item, ticks: Ticks) -> Seen:
    time.sleep(0.2)
    return Seen(os.getpid(), os.getppid(), os.environ.get("OMP_NUM_THREADS", ""))


def die(item: Item, ticks: Ticks) -> Seen:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture
def pools() -> Iterator[list[tuple[str, int]]]:
    """Address and process of two pools."""
    path = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])
    command = [sys.executable, "-m", "pipelines.worker", "--port", "0", "--host", "127.0.0.1"]
    environment = {**os.environ, "PYTHONPATH": path}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    made = []
    for process in processes:
        assert process.stdout is not None
        match = re.fullmatch(r"workers can be had at port (\d+)\n", process.stdout.readline())
        assert match is not None
        made.append((f"127.0.0.1:{match[1]}", process.pid))
    yield made
    for process in processes:
        process.terminate()
    assert [process.wait(timeout=30) for process in processes] == [0, 0]


def jobs(addresses: list[str], each: int = 1) -> BeamJobs:
    options: dict[str, Json] = {
        "environment_type": "EXTERNAL",
        "environment_config": ",".join(addresses),
        "direct_num_workers": each * len(addresses),
    }
    return BeamJobs(options, Events(None))


def seen(beam: BeamJobs, tmp_path: Path, label: str = "look") -> list[Seen]:
    items = [Item(str(number)) for number in range(8)]
    return beam.map(label, items, look, Seen, tmp_path, total=8, unit="items")


def test_every_pool_has_its_share_of_workers(pools: list[tuple[str, int]], tmp_path: Path) -> None:
    found = seen(jobs([address for address, _ in pools], each=2), tmp_path)
    assert {each.parent for each in found} == {process for _, process in pools}
    assert len({each.process for each in found}) == 4
    assert {each.threads for each in found} == {str(max(1, available_cpus() // 2))}


def test_a_pool_that_does_not_answer_is_left_out(
    pools: list[tuple[str, int]], tmp_path: Path
) -> None:
    (address, process), _ = pools
    assert answering([address, "127.0.0.1:9"])[address] == ""
    assert answering(["127.0.0.1:9"])["127.0.0.1:9"]
    found = seen(jobs([address, "127.0.0.1:9"]), tmp_path)
    assert {each.parent for each in found} == {process}
    with pytest.raises(WorkerDiedError, match=r"no worker pool answers: 127\.0\.0\.1:9"):
        seen(jobs(["127.0.0.1:9"]), tmp_path, "nobody")


OTHER_RUN = """
import sys
from pathlib import Path
from test_pools import Held, Seen, held, jobs
items = [Held(str(number), sys.argv[2]) for number in range(3)]
jobs([sys.argv[1]]).map("held", items, held, Seen, Path(sys.argv[2]), total=3, unit="items")
"""


@dataclass(frozen=True)
class Held:
    name: str
    folder: str


def held(item: Held, ticks: Ticks) -> Seen:
    """Works until it is let go."""
    ticks(1)
    while not (Path(item.folder) / "go").exists():
        time.sleep(0.02)
    return Seen(0, 0, "")


def test_a_pool_works_for_two_runs_at_a_time(pools: list[tuple[str, int]], tmp_path: Path) -> None:
    """Runs number their workers alike; the end of one's job is not the end of the other's."""
    (address, _), _ = pools
    path = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_RUN, address, str(tmp_path / "other")],
        env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("other/held/*.ticks")):
        assert other.poll() is None, other.communicate()[1]
        time.sleep(0.02)
    seen(jobs([address]), tmp_path)
    assert other.poll() is None
    (tmp_path / "other" / "go").touch()
    _, errors = other.communicate(timeout=60)
    assert other.returncode == 0, errors


def test_only_some_of_the_pools_are_used(pools: list[tuple[str, int]], tmp_path: Path) -> None:
    """Those whose machines were found to be as the run's."""
    (address, process), (other, _) = pools
    beam = BeamJobs(jobs([address, other]).options, Events(None), None, [address])
    assert {each.parent for each in seen(beam, tmp_path)} == {process}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Beam's
def test_a_worker_that_dies_is_told_and_the_next_job_has_others(
    pools: list[tuple[str, int]], tmp_path: Path
) -> None:
    beam = jobs([address for address, _ in pools])
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="is lost: its process ended"):
        beam.map("die", [Item("a"), Item("b")], die, Seen, tmp_path, total=2, unit="items")
    assert time.monotonic() - started < 30
    assert len({each.process for each in seen(beam, tmp_path)}) == 2


class HalfPool(BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """Its workers ask for work, and are gone before they ask for data."""

    def StartWorker(self, request: Any, context: Any) -> Any:
        threading.Thread(target=self.work, args=(request,), daemon=True).start()
        return messages.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        return messages.StopWorkerResponse()

    def work(self, request: Any) -> None:
        answers: queue.Queue[Any] = queue.Queue()
        with grpc.insecure_channel(request.control_endpoint.url) as channel:
            control = services.BeamFnControlStub(channel).Control(
                iter(answers.get, None), metadata=[("worker_id", request.worker_id)]
            )
            next(control)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Beam's
def test_a_worker_that_dies_before_it_asks_for_data_is_no_hang(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    services.add_BeamFnExternalWorkerPoolServicer_to_server(HalfPool(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    beam = jobs([f"127.0.0.1:{port}"], each=2)  # with two, a step gives elements to the next
    ended: list[BaseException] = []

    def work() -> None:
        try:
            seen(beam, tmp_path)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    server.stop(0)
    assert len(ended) == 1 and "is lost: its process ended" in str(ended[0])


def test_addresses() -> None:
    assert addresses_of("a:1, b.c:65535 ,[::1]:50000,") == ("a:1", "b.c:65535", "[::1]:50000")
    for wrong in ("", "a", "a:", ":1", "a:x", "a:0", "a:65536", "a:1;b:2"):
        with pytest.raises(ValueError, match="host:port"):
            addresses_of(wrong)
    assert address_towards("127.0.0.1:50000") == "127.0.0.1"


def test_only_the_fnapirunner_has_pools_of_ours() -> None:
    external = {"environment_type": "EXTERNAL", "environment_config": "a:1"}
    assert pools_of(external) == ("a:1",)
    assert pools_of(external | {"runner": "PortableRunner"}) == pools_of({}) == ()


def test_threads_are_those_of_the_machine() -> None:
    assert worker_threads(1) == available_cpus() and worker_threads(10**6) == 1


def test_what_is_different_on_a_machine() -> None:
    ours = equipment(["pipelines.running.beam_jobs:BeamJobs"], ["polars"])
    assert "pipelines/store/files.py" in ours.code and differences(ours, ours) == []
    other = Equipment(
        {**ours.libraries, "polars": "1.0"},
        {**ours.code, "pipelines/store/files.py": "0"},
        ours.architecture,
        ours.instructions ^ {"avx512_bf16"},
    )
    version, code, processor = differences(ours, other)
    assert version.startswith("it has polars 1.0, and the run has ")
    assert code == "it has other code in pipelines/store/files.py"
    assert "other instructions (avx512_bf16)" in processor
    (kind,) = differences(ours, replace(ours, architecture="riscv64"))
    assert kind == f"it is riscv64, and the run is on {ours.architecture}"
