"""Workers on other machines, for jobs of the FnApiRunner: pools that speak Beam's own protocol for
external workers, `python -m pipelines.worker` or Beam's image with `--worker_pool`.

Each job asks every pool that answers for its share of workers. A worker that is lost ends the job
with an error, however it was lost: at once if its process ended, `LOST` seconds after its machine
was off or the network cut, and as many again that Beam takes to close the connection. What it had
finished stays, so another attempt does only the rest.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from pipelines.internals.apache_beam import (
    Environment,
    FnApiRunner,
    GrpcWorkerHandler,
    PoolClient,
    WorkerHandler,
    fail,
    is_connected,
    was_connected,
)
from pipelines.running.workers import WorkerDiedError

URN = "pipelines:env:worker_pools:v1"
ANSWER, CHECK, LOST, START = 5.0, 1.0, 30.0, 90.0
"""Seconds: that a pool may take to answer; between two looks at a worker; after which a pool that
does not answer is lost; and that a worker may take to ask for work after it was started."""
SHARE, PATH = "pipelines-share", "pipelines-path"
"""What a pool of ours is told of a worker: how many there are on its machine, and where it finds
modules of the user's own."""
_turns = itertools.count()


@dataclass(frozen=True)
class Pools:
    """The pools of a job, by address, and what each is told of its workers."""

    addresses: tuple[str, ...]
    params: Mapping[str, str]


def answering(addresses: Sequence[str]) -> dict[str, str]:
    """Every address, with nothing if its pool answers, and otherwise with the reason."""

    def ask(address: str) -> str:
        pool = PoolClient(address)
        try:
            pool.stop("", ANSWER)
        except grpc.RpcError as error:
            return str(error.details() if isinstance(error, grpc.Call) else error)
        finally:
            pool.close()
        return ""

    with ThreadPoolExecutor(len(addresses)) as threads:
        return dict(zip(addresses, threads.map(ask, addresses), strict=True))


def runner(addresses: Sequence[str], share: int) -> FnApiRunner:
    """A runner whose workers are in these pools.

    Args:
        share: how many workers there are on a machine, which share its processors.
    """
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if _is_own(entry))
    params = {SHARE: str(share), PATH: path}
    return FnApiRunner(default_environment=PoolsEnvironment(Pools(tuple(addresses), params)))


def _is_own(entry: str) -> bool:
    """Whether a folder of modules is not that of Python or of installed packages."""
    place = Path(entry).absolute()
    installed = (Path(sys.prefix), Path(sys.base_prefix))
    return place.is_dir() and not any(place.is_relative_to(folder) for folder in installed)


@Environment.register_urn(URN, None)
class PoolsEnvironment(Environment):  # type: ignore[misc]
    """The Beam environment whose workers are in pools."""

    def __init__(
        self,
        pools: Pools,
        capabilities: Any = (),
        artifacts: Any = (),
        resource_hints: Any = None,
    ) -> None:
        super().__init__(capabilities, artifacts, resource_hints)
        self.pools = pools

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        facts = {"addresses": self.pools.addresses, "params": dict(self.pools.params)}
        return URN, json.dumps(facts).encode("utf-8")

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes, capabilities: Any, artifacts: Any, resource_hints: Any, context: Any
    ) -> PoolsEnvironment:
        return PoolsEnvironment(_pools(payload), capabilities, artifacts, resource_hints)


def _pools(payload: bytes) -> Pools:
    facts = json.loads(payload)
    return Pools(tuple(facts["addresses"]), facts["params"])


@WorkerHandler.register_environment(URN, bytes)
class PoolWorkerHandler(GrpcWorkerHandler):  # type: ignore[misc]
    """One worker in a pool, for the time of one job."""

    def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        self.pools = _pools(payload)
        self.turn = next(_turns)
        self.address = self.pools.addresses[self.turn % len(self.pools.addresses)]
        self.pool = PoolClient(self.address)
        super().__init__(state, provision_info, grpc_server)
        # Beam counts workers in a process, and a pool can work for several runs at a time.
        self.worker_id: str = f"worker_{self.turn}-{secrets.token_hex(8)}"
        self.control_conn = grpc_server.control_handler.get_conn_by_worker_id(self.worker_id)
        self.data_conn = grpc_server.data_plane_handler.get_conn_by_worker_id(self.worker_id)
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    def host_from_worker(self) -> str:
        """This machine's address, as the worker's machine reaches it."""
        return address_towards(self.address)

    def start_worker(self) -> None:
        logging = self.logging_api_service_descriptor().url
        try:
            wrong = self.pool.start(
                self.worker_id, self.control_address, logging, self.pools.params, 2 * ANSWER
            )
        except grpc.RpcError as error:
            raise WorkerDiedError(
                f"no worker can be started at {self.address}: {error.details()}"
            ) from error
        if wrong:
            raise RuntimeError(f"no worker can be started at {self.address}: {wrong}")
        self.watcher.start()

    def watch(self) -> None:
        """Fails what the runner asks a worker for that is lost."""
        started = heard = time.monotonic()
        lost = ""
        while not lost:
            if self.over.wait(CHECK):
                return
            try:
                self.pool.stop("", ANSWER)
                heard = time.monotonic()
            except grpc.RpcError as error:
                if time.monotonic() - heard > LOST:
                    lost = f"its machine does not answer any more: {error.details()}"
            except ValueError:
                return  # the job is over, and the channel closed
            if was_connected(self.control_conn):
                if not is_connected(self.control_conn):
                    lost = "its process ended; is there enough memory?"
            elif time.monotonic() - started > START:
                lost = f"it did not ask for work within {START:.0f} s; see what the pool printed"
        died = WorkerDiedError(f"the worker at {self.address} is lost: {lost}")
        while not self.over.wait(CHECK):
            fail(self, died)

    def stop_worker(self) -> None:
        self.over.set()
        with suppress(grpc.RpcError):
            self.pool.stop(self.worker_id, ANSWER)
        self.pool.close()


def address_towards(address: str) -> str:
    """This machine's address in the network in which another is, `host:port`. Nothing is sent."""
    host, _, port = address.rpartition(":")
    for family, kind, protocol, _, place in socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_DGRAM
    ):
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            own = str(probe.getsockname()[0])
            return f"[{own}]" if ":" in own else own
    raise WorkerDiedError(f"there is no way to {address}")
