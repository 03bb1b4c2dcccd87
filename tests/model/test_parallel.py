"""Several processes train together to the bytes of one, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.parallel.layout import Layout

TIME = 120
"""Seconds for a few steps of a few processes, which import PyTorch first."""

WORKER = """
import faulthandler, hashlib, json, sys
from pathlib import Path

faulthandler.dump_traceback_later(100, exit=True)
asked = json.loads(sys.argv[1])

import torch
from torch import distributed

from model.parallel.layout import Layout
from model.parallel.team import Team
from tests.model.jobs import trainer

torch.set_num_threads(1)
layout = Layout(**asked["layout"])
if layout.processes > 1:
    distributed.init_process_group("gloo")
team = Team(layout)
run = trainer(asked["job"], Path(asked["scratch"]), team, **asked["options"])
stop = asked["until"]


class Stopped(Exception):
    pass


def watch(progress):
    if progress.step == stop:
        raise Stopped


try:
    run.run(watch)
except Stopped:
    pass
if team.leads:
    weights = dict(run.whole_model.named_parameters())
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].detach().numpy().tobytes())
    print(json.dumps({"weights": digest.hexdigest()[:16], "curve": run.progress.curve}))
if layout.processes > 1:
    distributed.barrier()
    distributed.destroy_process_group()
"""


def trained(
    scratch: Path,
    job: str = "text",
    until: int | None = None,
    options: dict[str, Any] | None = None,
    **layout: int,
) -> dict[str, Any]:
    """What comes of a job."""
    scratch.mkdir(exist_ok=True)
    asked = {
        "layout": layout, "job": job, "scratch": str(scratch), "until": until,
        "options": options or {},
    }  # fmt: skip
    count = Layout(**layout).processes
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(asked)],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=TIME) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, told[0][1] + told[-1][1]
    result: dict[str, Any] = json.loads(told[0][0].splitlines()[-1])
    return result


ONE = {"dp_shard": 1}
LAYOUTS = [
    {"dp_shard": 2},
    {"dp_replicate": 2},
    pytest.param({"dp_shard": 4}, marks=pytest.mark.long),
    pytest.param({"dp_replicate": 2, "dp_shard": 2}, marks=pytest.mark.long),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("job", "options"),
    [("text", {"optimizer": "muon", "accumulate": 2}), ("several", {}), ("lstm", {})],
)
def test_weights_have_the_bytes_of_one_process(
    tmp_path: Path, layout: dict[str, int], job: str, options: dict[str, Any]
) -> None:
    """Dropout on; `several` has rows of text, of pictures and of both, and a latent variable."""
    options = {"parts": 4, "steps": 8, "validate_every": 4, **options}
    alone = trained(tmp_path / "one", job, options=options)
    together = trained(tmp_path / "team", job, options=options, **layout)
    assert together == alone
