"""Starts the processes of a team on this machine.

PyTorch's elastic launcher does the work. It is a program of its own, run by `model.parallel.rank`,
because it takes over the signals of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from model.parallel.rank import PATIENCE, started_here


def main() -> int:
    """Starts the processes and waits for them; 0 if all succeeded. Otherwise tells, as JSON on
    stdout, the rank of the one that failed, its exit code (negative for a signal) and its log. When
    one is killed the others fail too, because it is gone: the one that was killed is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--logs", type=Path, required=True, help="folder for what they print")
    parser.add_argument("module", help="what each runs, as python -m does")
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args()

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= started_here()
    logs = DefaultLogsSpecs(log_dir=str(asked.logs), redirects=Std.ALL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=asked.processes,
        logs_specs=logs,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",  # a host name need not resolve
        run_id="team",
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=PATIENCE,
    )
    command = [sys.executable, "-m", "model.parallel.rank", asked.module, *asked.arguments]
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        killed = {
            rank: failure
            for rank, failure in error.failures.items()
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        }
        rank, failure = next(iter(killed.items()), error.get_first_failure())
        pattern = f"**/attempt_*/{rank}/stderr.log"
        newest = max(asked.logs.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
        told = {"rank": rank, "code": failure.exitcode, "log": str(newest or asked.logs)}
        print(json.dumps(told), flush=True)
        return 1
    return 0
