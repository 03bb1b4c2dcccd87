"""Several processes train together to the bytes of one, and go on from each other's checkpoints."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.parallel.layout import Layout
from model.parallel.team import in_pairs

TIME = 120
"""Seconds for a few steps of a few processes, which import PyTorch first."""

WORKER = """
import faulthandler, hashlib, json, os, signal, sys
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


def watch(progress):
    if [progress.step, team.rank] == asked["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)


run.run(watch)
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
    layout: dict[str, int],
    options: dict[str, Any],
    job: str = "text",
    kill: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What comes of a job.

    Args:
        kill: the step after which a process is killed, and its rank; nothing comes of the job then.
    """
    scratch.mkdir(exist_ok=True)
    asked = {
        "layout": layout, "job": job, "scratch": str(scratch), "kill": kill,
        "options": options,
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
        if kill is not None:
            assert processes[kill[1]].wait(TIME) == -signal.SIGKILL
            return {}
        told = [process.communicate(timeout=TIME) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, told[0][1] + told[-1][1]
    result: dict[str, Any] = json.loads(told[0][0].splitlines()[-1])
    return result


ONE = {"dp_shard": 1}
MORE = pytest.mark.long
JOBS: dict[str, dict[str, Any]] = {
    "text": {"optimizer": "muon", "accumulate": 2}, "several": {}, "lstm": {},
}  # fmt: skip
CASES = [
    ("text", {"dp_shard": 2}),
    pytest.param("several", {"dp_shard": 2}, marks=MORE),
    pytest.param("lstm", {"dp_replicate": 2}, marks=MORE),
    pytest.param("text", {"dp_replicate": 2}, marks=MORE),
    pytest.param("several", {"dp_replicate": 2}, marks=MORE),
    pytest.param("lstm", {"dp_shard": 2}, marks=MORE),
    *(pytest.param(job, {"dp_shard": 4}, marks=MORE) for job in JOBS),
    *(pytest.param(job, {"dp_replicate": 2, "dp_shard": 2}, marks=MORE) for job in JOBS),
]


@pytest.mark.parametrize(("job", "layout"), CASES)
def test_weights_have_the_bytes_of_one_process(
    tmp_path: Path, job: str, layout: dict[str, int]
) -> None:
    """Dropout on; `several` has rows of text, of pictures and of both, and a latent variable."""
    options = {"parts": 4, "steps": 8, "validate_every": 4, **JOBS[job]}
    alone = trained(tmp_path / "one", ONE, options, job)
    together = trained(tmp_path / "team", layout, options, job)
    assert together == alone


@pytest.mark.long
def test_training_goes_on_with_other_processes(tmp_path: Path) -> None:
    options = {"parts": 4, "optimizer": "muon", "checkpoint_every": 1}
    alone = trained(tmp_path / "one", ONE, options)
    moved = tmp_path / "moved"
    trained(moved, {"dp_shard": 2}, options, kill=(3, 1))
    trained(moved, ONE, options, kill=(5, 0))
    assert trained(moved, {"dp_replicate": 2}, options) == alone


@pytest.mark.long
def test_killed_at_any_step_it_goes_on_with_any_processes(tmp_path: Path) -> None:
    """20 kills, of any of the processes."""
    options = {"parts": 4, "optimizer": "muon", "checkpoint_every": 1, "steps": 48}
    alone = trained(tmp_path / "one", ONE, options)
    draw, moved, step = random.Random(3), tmp_path / "moved", 0
    for _ in range(20):
        layout = {"dp_shard": draw.choice([1, 2, 4]), "dp_replicate": draw.choice([1, 2])}
        if layout["dp_shard"] == 4:
            layout["dp_replicate"] = 1
        step += draw.randint(1, 2)
        rank = draw.randrange(layout["dp_shard"] * layout["dp_replicate"])
        trained(moved, layout, options, kill=(step, rank))
    assert trained(moved, {"dp_shard": 2}, options) == alone


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_rounds_alike_wherever_a_tensor_is_cut(fused: bool) -> None:
    """The kernel that is faster does not: what is left at the end of a vector is rounded otherwise.
    So it is not used."""
    draw = random.Random(0)

    def stepped(size: int, cuts: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(size)
        whole = torch.randn(4, size, generator=generator)
        spans = list(itertools.pairwise([0, *cuts, size]))
        weights = [torch.nn.Parameter(whole[0, a:b].clone()) for a, b in spans]
        adam = torch.optim.AdamW(
            weights, 3e-3, weight_decay=0.01, fused=fused or None, foreach=not fused or None
        )
        for gradient in whole[1:]:
            for weight, (a, b) in zip(weights, spans, strict=True):
                weight.grad = gradient[a:b].clone()
            adam.step()
        return torch.cat([weight.detach() for weight in weights])

    differ = 0
    for _ in range(300):
        size = draw.randint(2, 700)
        cuts = sorted(draw.sample(range(1, size), min(3, size - 1)))
        differ += int((stepped(size, cuts) != stepped(size, [])).sum())
    if fused and not differ:
        pytest.skip("this processor rounds alike with that kernel too")
    assert bool(differ) == fused


@pytest.mark.parametrize(
    ("layout", "parts", "said"),
    [
        ({"dp_shard": 3}, 4, "dp_shard: 3 is not a power of 2"),
        ({"dp_shard": 4, "dp_replicate": 2}, 4, "8 processes cannot share a step of parts: 4; set"),
    ],
)
def test_what_cannot_be_shared_is_said(layout: dict[str, int], parts: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout(**layout).check(parts)


def test_sums_are_added_in_pairs() -> None:
    numbers = [torch.tensor(value) for value in (2.0**24, 1.0, 1.0, -(2.0**24))]
    assert float(sum(each.clone() for each in numbers)) == 0.0
    assert float(in_pairs(numbers)) == 1.0
