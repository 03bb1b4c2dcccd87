"""A pool of workers for jobs that run on another machine: `python -m pipelines.worker`.

It is Beam's own service; only the process that it starts for a worker is ours: the same Python, as
many threads as there are processors for it, and an end in the middle of a piece if its job is over.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc

from pipelines.contracts.shown import complain, tell
from pipelines.internals.apache_beam import (
    BeamFnExternalWorkerPoolServicer,
    frequent_sampling,
    harness,
    messages,
    services,
)
from pipelines.running.beam_jobs import THREAD_VARIABLES, worker_threads
from pipelines.running.pools import PATH, SHARE

SERVICE_THREADS = 16


class WorkerPool(BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """Starts and ends workers, each a process of its own."""

    def __init__(self) -> None:
        super().__init__(use_process=True)
        self.lock = threading.Lock()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def StartWorker(self, request: Any, context: Any) -> Any:
        share = request.params.get(SHARE, "1")
        threads = worker_threads(int(share) if share.isdecimal() else 1)
        # What the pool has of its own comes first: the run compares it with what it has.
        path = [os.environ.get("PYTHONPATH", ""), request.params.get(PATH, "")]
        limits = dict.fromkeys(THREAD_VARIABLES, str(threads)) if share != "1" else {}
        environment = {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        try:
            # What a worker leaves when it is killed goes with it.
            folder = environment["TMPDIR"] = tempfile.mkdtemp(prefix="pipelines-worker-")
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pipelines.running.pool_server"),
                    *(request.control_endpoint.url, request.worker_id),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment,
            )
        except OSError as error:
            return messages.StartWorkerResponse(error=str(error))
        with self.lock:
            self.processes[request.worker_id] = process
        threading.Thread(target=_follow, args=(process, folder), daemon=True).start()
        return messages.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        """Ends a worker at once: a job that is over must not go on writing."""
        with self.lock:
            process = self.processes.pop(request.worker_id, None)
        if process is not None:
            process.kill()
        return messages.StopWorkerResponse()

    def register(self, server: grpc.Server) -> None:
        services.add_BeamFnExternalWorkerPoolServicer_to_server(self, server)

    def close(self) -> None:
        with self.lock:
            for process in self.processes.values():
                process.kill()


def _follow(process: subprocess.Popen[bytes], folder: str) -> None:
    """Waits for a worker's end, and removes its temporary files."""
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def work(control: str, worker: str) -> None:
    """Runs in a worker process: does one job's work, until the job's machine has no more or is
    gone. Then ends at once, even in the middle of a piece: nobody needs the rest. If the network is
    cut, it knows after five minutes; what it writes until then, others write too, byte for byte.
    """
    code = 1
    try:
        with frequent_sampling():
            harness(control, worker).run()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.worker",
        description="Works for jobs that run on another machine, which name this one under beam:. "
        "Whoever reaches the port can run programs here: keep it in a network of your own.",
    )
    command.add_argument("--port", type=int, default=50000, help="default: %(default)s")
    command.add_argument(
        "--host", default="[::]", help="the address to listen at (default: all, %(default)s)"
    )
    options = command.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    pool = WorkerPool()
    server = grpc.server(
        ThreadPoolExecutor(SERVICE_THREADS),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.max_ping_strikes", 0),
        ],
    )
    pool.register(server)
    try:
        port = server.add_insecure_port(f"{options.host}:{options.port}")
    except RuntimeError:
        complain(f"{options.host}:{options.port} cannot be listened at; is it taken?")
        return 2
    server.start()
    tell(f"workers can be had at port {port}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop(0))
    with suppress(KeyboardInterrupt):
        server.wait_for_termination()
    pool.close()
    return 0


if __name__ == "__main__":
    work(*sys.argv[1:])
