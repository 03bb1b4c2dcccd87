"""Starts the processes of a team on this machine: `python -m model.parallel.launch`.

PyTorch's elastic launcher does the work. It is a program of its own because it takes over the
signals of its process. If it is stopped, or whoever started it is gone, no process remains.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

PATIENCE = 10
"""Seconds that processes have to end by themselves."""


def die_with_parent() -> None:
    """Ends this process when the one that started it has ended, however that came."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Starts the processes and waits for them; 0 if all succeeded. Otherwise tells, as JSON on
    stdout, the rank of the first that failed, its exit code (negative for a signal) and its log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--logs", type=Path, required=True, help="folder for what they print")
    parser.add_argument("module", help="what each runs, as python -m does")
    parser.add_argument("arguments", nargs="*")
    asked = parser.parse_args()

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    die_with_parent()
    asked.logs.mkdir(parents=True, exist_ok=True)
    logs = DefaultLogsSpecs(log_dir=str(asked.logs), redirects=Std.ALL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=asked.processes,
        logs_specs=logs,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="team",
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=PATIENCE,
    )
    command = [sys.executable, "-m", asked.module, *asked.arguments]
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        pattern = f"**/attempt_*/{rank}/stderr.log"
        newest = max(asked.logs.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
        told = {"rank": rank, "code": failure.exitcode, "log": str(newest or asked.logs)}
        print(json.dumps(told), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
