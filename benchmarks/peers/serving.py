"""Contenders in a process of their own, that decode when they are told to.

The process reads a job, loads, answers with a line of JSON (names, seconds that loading took),
and then decodes once for each line that it is sent. So rounds can be interleaved, and memory and
start-up be measured apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tokens = list[list[int]]


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def serve(
    started: float, load: Callable[[dict[str, Any]], dict[str, Callable[[], Tokens]]]
) -> None:
    """
    Args:
        started: `time.time()` before anything heavy was imported.
        load: gives contenders by name, of the job whose path is the first argument.
    """
    contenders = load(json.loads(Path(sys.argv[1]).read_text()))
    loaded = {"names": list(contenders), "seconds": time.time() - started}
    print(json.dumps(loaded), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        tokens = contenders[request["name"]]()
        answer: dict[str, Any] = {"seconds": time.perf_counter() - began, "memory": peak_memory()}
        if request["tokens"]:
            answer["tokens"] = tokens
        print(json.dumps(answer), flush=True)
