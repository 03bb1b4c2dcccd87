"""Worker processes on this machine that serve one Beam job after another.

Beam's own `multi_processing` starts new interpreters for every job, which takes seconds each time;
its `multi_threading` shares one interpreter, whose lock the workers then wait for. The workers here
start with a run's first job and end with the run. They are Beam's own SdkHarness, used through an
environment of the FnApiRunner; only the code that starts and ends them is ours.

A process reads jobs from its standard input, one per line (control address and worker id), and
answers each with a line when the job is over. It ends as soon as its input ends, in the middle of a
job too, so no worker outlives the run, however the run ends.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from pipelines.internals.apache_beam import (
    Environment,
    FnApiRunner,
    GrpcWorkerHandler,
    WorkerHandler,
    fail,
    frequent_sampling,
    harness,
)

URN = "pipelines:env:kept_processes:v1"
ABORT_SECONDS, END_SECONDS = 0.2, 2.0
"""Between attempts to end what a dead process is asked for; and how long a process may take to
end its job when it is over."""

_all: list[subprocess.Popen[str]] = []
"""All processes of this run."""

_idle: list[subprocess.Popen[str]] = []
"""Processes without a job. Those of a failed job never come back here: they may still run it."""


class WorkerDiedError(RuntimeError):
    """A worker process ended in the middle of its work."""


@Environment.register_urn(URN, None)
class KeptProcesses(Environment):  # type: ignore[misc]
    """The Beam environment whose workers are these processes."""

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        return URN, b""

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes, capabilities: Any, artifacts: Any, resource_hints: Any, context: Any
    ) -> KeptProcesses:
        return KeptProcesses(capabilities, artifacts, resource_hints)


def runner() -> FnApiRunner:
    """A runner whose workers are these processes."""
    return FnApiRunner(default_environment=KeptProcesses())


def dismiss() -> None:
    """Kills all processes, also those that still work on a job which has failed or was stopped."""
    _idle.clear()
    while _all:
        process = _all.pop()
        process.kill()
        process.wait()


@WorkerHandler.register_environment(URN, bytes)
class KeptWorkerHandler(GrpcWorkerHandler):  # type: ignore[misc]
    """One process, for the time of one job."""

    def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self.process = taken()
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    def start_worker(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.control_address} {self.worker_id}\n")
        self.process.stdin.flush()
        self.watcher.start()

    def watch(self) -> None:
        """Waits for the job's end; if the process died, fails what the runner still asks it for."""
        assert self.process.stdout is not None
        if self.process.stdout.readline():
            _idle.append(self.process)
            return
        code = self.process.wait()
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        error = WorkerDiedError(f"a worker process died ({reason}); is there enough memory?")
        while not self.over.wait(ABORT_SECONDS):
            fail(self, error)

    def stop_worker(self) -> None:
        self.over.set()
        self.watcher.join(END_SECONDS)
        if self.watcher.is_alive():  # The job was stopped, and a piece of it takes long.
            self.process.kill()
            self.watcher.join()


def taken() -> subprocess.Popen[str]:
    """A process without a job: one that is still alive, or a new one."""
    while _idle:
        process = _idle.pop()
        if process.poll() is None:
            return process
    return started()


def started() -> subprocess.Popen[str]:
    """A new worker process, which can import the same modules as this one."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.running.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    _all.append(process)
    return process


def serve() -> None:
    """Runs in a worker process: serves one job after another until the input ends."""
    # Ctrl-C reaches every process of a terminal, but the run decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Only answers go to the pipe: what steps print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=receive, args=(jobs,), daemon=True).start()
    with frequent_sampling():
        while True:
            address, name = jobs.get().split()
            harness(address, name).run()
            print("done", file=answers, flush=True)


def receive(jobs: queue.Queue[str]) -> None:
    """Passes on the jobs that the run sends. When the run has ended, however it ended, ends this
    process at once, even in the middle of a job: nobody else may write to the run's scratch."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    serve()
