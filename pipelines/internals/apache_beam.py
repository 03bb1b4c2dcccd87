"""Beam's workers and its runner of local jobs, which its API offers only together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.portability.api import beam_fn_api_pb2 as messages
from apache_beam.portability.api import beam_fn_api_pb2_grpc as services
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    DATA_BUFFER_TIME_LIMIT_MS,
    FNAPI_RUNNER_CAPABILITIES,
    STATE_CACHE_SIZE_MB,
    BeamFnControlServicer,
    ControlConnection,
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.transforms.environments import Environment

from pipelines.internals.versions import require

require(["apache-beam"], "2.77.0")

__all__ = [
    "BeamFnExternalWorkerPoolServicer",
    "Environment",
    "FnApiRunner",
    "GrpcWorkerHandler",
    "WorkerHandler",
    "messages",
    "services",
]

SAMPLING_MS = 20


@contextmanager
def frequent_sampling() -> Iterator[None]:
    """Beam samples which step it is in, and at its end a job waits for one more sample. Beam's
    default of 200 ms, which no option changes, costs each job a tenth of a second."""
    before = StateSampler.__init__.__defaults__
    StateSampler.__init__.__defaults__ = (SAMPLING_MS,)
    try:
        yield
    finally:
        StateSampler.__init__.__defaults__ = before


def option_names() -> set[str]:
    """The names of all options that Beam's PipelineOptions take, as `from_dictionary` does."""
    parser = _BeamArgumentParser()
    for group in set(PipelineOptions.__subclasses__()):
        if group.__module__.startswith("apache_beam."):
            group._add_argparse_args(parser)
    names = {action.dest for action in parser._actions}
    flags = {flag.lstrip("-") for action in parser._actions for flag in action.option_strings}
    return (names | flags) - {"help", "h"}


def harness(control_address: str, worker_id: str) -> SdkHarness:
    """A worker that serves one job when it runs, with the settings of Beam's own local workers."""
    return SdkHarness(
        control_address,
        worker_id=worker_id,
        state_cache_size=STATE_CACHE_SIZE_MB << 20,
        data_buffer_time_limit_ms=DATA_BUFFER_TIME_LIMIT_MS,
        runner_capabilities=FNAPI_RUNNER_CAPABILITIES,
    )


class PoolClient:
    """What a runner asks of a pool of external workers, Beam's BeamFnExternalWorkerPool. Every call
    raises `grpc.RpcError` if nobody answers in time."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub = services.BeamFnExternalWorkerPoolStub(self.channel)

    def start(
        self,
        worker: str,
        control: str,
        logging: str,
        params: Mapping[str, str],
        seconds: float,
    ) -> str:
        """Starts a worker; returns what went wrong, or nothing.

        Args:
            control: where the worker finds its work.
            logging: where it sends what it logs.
        """
        here = endpoints_pb2.ApiServiceDescriptor(url=control)
        request = messages.StartWorkerRequest(
            worker_id=worker,
            control_endpoint=here,
            artifact_endpoint=here,
            provision_endpoint=here,
            logging_endpoint=endpoints_pb2.ApiServiceDescriptor(url=logging),
            params=dict(params),
        )
        return str(self.stub.StartWorker(request, timeout=seconds).error)

    def stop(self, worker: str, seconds: float) -> None:
        """Ends a worker. With a name that no worker has, asks only whether the pool answers."""
        self.stub.StopWorker(messages.StopWorkerRequest(worker_id=worker), timeout=seconds)

    def close(self) -> None:
        self.channel.close()


def fail(handler: GrpcWorkerHandler, error: Exception) -> None:
    """Fails all that the runner waits for from a worker: its answers, and its data. A worker that
    ended before it asked for data has no stream that could break, so nothing else tells."""
    handler.control_conn.abort(error)
    handler.data_conn._exception = error


def was_connected(connection: ControlConnection) -> bool:
    """Whether a worker has ever asked for work on its connection."""
    return bool(connection._state != BeamFnControlServicer.UNSTARTED_STATE)


def is_connected(connection: ControlConnection) -> bool:
    """Whether a worker is there: what it answers is read by a thread, which ends with it."""
    return was_connected(connection) and connection._read_thread.is_alive()
