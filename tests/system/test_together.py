"""A job whose training several processes share ends in the bytes of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Bytes = Callable[[Path], dict[str, bytes]]
PARTS = ("--set", "train.parts=2")
TWO = (*PARTS, "--set", "train.parallel={dp_shard: 2}")


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Bytes are the same for the same number of threads in a process."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def test_two_processes_train_to_the_same_bytes(
    tmp_path: Path, small_job: Callable[..., Path], run_pipeline: Run, artifact_bytes: Bytes
) -> None:
    job = small_job(tmp_path)
    run_pipeline(job, "--runs-dir", tmp_path / "one", *PARTS)
    said = run_pipeline(job, "--runs-dir", tmp_path / "two", *TWO).stderr
    assert "training rows with" in said and "20/20 steps" in said.replace(" steps,", " steps")
    assert artifact_bytes(tmp_path / "two") == artifact_bytes(tmp_path / "one")
    again = run_pipeline(job, "--runs-dir", tmp_path / "one", *TWO)
    assert "train: cached" in again.stderr, "how many processes there are changes nothing"


def processes(text: str) -> list[int]:
    """Those whose command line has a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command and folder.name != str(os.getpid()):
            found.append(int(folder.name))
    return found


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["rank", "launcher", "run", "stop"])
def test_whoever_dies_leaves_no_process_and_training_goes_on(
    victim: str,
    tmp_path: Path,
    root: Path,
    small_job: Callable[..., Path],
    run_pipeline: Run,
    artifact_bytes: Bytes,
) -> None:
    job = small_job(tmp_path, steps=40)
    words = [*TWO, "--set", "train.checkpoint_every=5", "--to", "train"]
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "pipelines.run", str(job), "--runs-dir", str(runs), *words]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    scratch = runs / "store" / "work"
    wait_for(lambda: bool(list(scratch.glob("train-*/scratch/checkpoint.safetensors"))))
    mine = str(next(scratch.glob("train-*")))
    starting = processes("model.parallel.launch")
    ranks = [pid for pid in processes(mine) if pid not in starting]
    (launcher,) = [pid for pid in starting if pid in processes(mine)]
    assert len(ranks) == 2
    if victim == "rank":
        os.kill(ranks[1], signal.SIGKILL)
    elif victim == "launcher":
        os.kill(launcher, signal.SIGKILL)
    elif victim == "run":
        process.kill()
    else:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    wait_for(lambda: processes(mine) == [], 30)
    if victim == "rank":
        assert "of 2 that train together was killed by SIGKILL; see " in errors
        log = errors.partition("SIGKILL; see ")[2].split()[0]
        assert Path(log).exists()
    if victim == "launcher":
        said = "what starts the 2 processes that train together was killed by SIGKILL; see "
        assert said in errors
    assert process.returncode == {"rank": 1, "launcher": 1, "run": -9, "stop": 143}[victim]
    run_pipeline(job, "--runs-dir", runs, *words)
    whole = tmp_path / "whole"
    run_pipeline(job, "--runs-dir", whole, *PARTS, "--set", "train.checkpoint_every=5", "--to",
                 "train")  # fmt: skip
    assert artifact_bytes(runs) == artifact_bytes(whole)


@pytest.mark.long
@pytest.mark.parametrize("moment", [0.0, 0.4, 1.5])
def test_a_run_that_is_killed_at_once_leaves_no_process(
    moment: float, tmp_path: Path, root: Path, small_job: Callable[..., Path], run_pipeline: Run
) -> None:
    """While its processes import what they need."""
    job, runs = small_job(tmp_path), tmp_path / "runs"
    run_pipeline(job, "--runs-dir", runs, "--to", "text")
    command = [sys.executable, "-m", "pipelines.run", str(job), "--runs-dir", str(runs), *TWO]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    wait_for(lambda: bool(list(runs.glob("store/work/train-*/scratch/own/logs/launcher.log"))))
    time.sleep(moment)
    process.kill()
    process.wait()
    mine = str(next(runs.glob("store/work/train-*")))
    wait_for(lambda: processes(mine) == [], 30)
    time.sleep(2)
    assert processes(mine) == []


@pytest.mark.long
def test_what_is_wrong_is_said_by_the_run(
    tmp_path: Path, small_job: Callable[..., Path], run_pipeline: Run
) -> None:
    job = small_job(tmp_path)
    said = run_pipeline(job, "--runs-dir", tmp_path / "r", "--set", "train.parallel={dp_shard: 2}",
                        code=2).stderr  # fmt: skip
    assert "2 processes cannot share a step of parts: 1; set parts: 2" in said
    said = run_pipeline(job, "--runs-dir", tmp_path / "r", *TWO, "--set",
                        "train.oversample={corpsu: {a: 2}}", code=1).stderr  # fmt: skip
    assert "train failed: oversample: the rows have no column 'corpsu'" in said
    wrong = ("--set", "train.retries=3", "--set", "train.learning_rate=1e38")
    said = run_pipeline(job, "--runs-dir", tmp_path / "r", *TWO, *wrong, code=1).stderr
    assert "train failed: FloatingPointError: the gradient is " in said
    assert "retry" not in said, "it would come to the same"
