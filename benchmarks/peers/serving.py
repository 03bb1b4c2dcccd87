"""Contenders in their own process, which decode on request.

The process reads a job, loads, answers with a line of JSON (names, seconds that loading took),
and then decodes once for each line that it is sent. So rounds can be interleaved, and memory and
start-up can be measured separately.
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
    """The peak memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def serve(
    started: float, load: Callable[[dict[str, Any]], dict[str, Callable[[], Tokens]]]
) -> None:
    """
    Args:
        started: `time.time()` before anything heavy was imported.
        load: returns contenders by name for a job; its path is the first command-line argument.
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
