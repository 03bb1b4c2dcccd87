"""One process of a team, or what starts them: `python -m model.parallel.rank MODULE ARGUMENTS`.

The module's `main` is called. From before anything heavy is imported until its end, the process
ends when the one that started it has ended, however that came; so nothing is left behind.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time

PARENT = "TEAM_PARENT"
"""The environment's name for the number of the process that started this one."""
PATIENCE = 10
"""Seconds that a process has to end by itself."""


def started_here() -> dict[str, str]:
    """What the environment of a process that this one starts must have."""
    return {PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Ends this process when its parent is no longer the one that started it."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    sys.exit(importlib.import_module(sys.argv[0]).main())
