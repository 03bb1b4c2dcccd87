"""One way out: however a run ends, exit code, record, console and `latest` say the same.

The stages are small ones of the test's own, so that what goes wrong can be chosen.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def record(runs: Path) -> dict[str, Any]:
    newest = max(path for path in runs.glob("job/*/run.json") if not path.parent.is_symlink())
    facts: dict[str, Any] = json.loads(newest.read_text())
    return facts


def is_told(completed: subprocess.CompletedProcess[str]) -> None:
    assert "Traceback" not in completed.stderr, completed.stderr
    assert completed.stderr.splitlines()[-1].startswith("to continue from here: python -m "), (
        completed.stderr
    )


@pytest.mark.parametrize(
    ("does", "said", "workers"),
    [
        ("exit", "second failed: SystemExit: 0", 1),
        ("recursion", "second failed: RecursionError: maximum recursion depth exceeded", 1),
        ("surrogate", "second failed: no file ⟨U+DC80⟩.txt", 1),
        ("interrupt", "second failed: KeyboardInterrupt", 1),
        ("wrong", "second failed: row 3 of d.tsv is wrong:\nsee there\ndetails: ", 1),
        ("wrong", "second failed: row 3 of d.tsv is wrong:\nsee there\ndetails: ", 2),
        ("present", "second failed: content.json is damaged", 1),
        ("present exit", "second failed: SystemExit", 1),
    ],
)
def test_whatever_fails_is_a_failure(
    tiny_job: Path, run_pipeline: Run, does: str, said: str, workers: int
) -> None:
    runs = tiny_job.parent / "runs"
    options = ["--set", f"second.does={does}", "--set", f"beam.direct_num_workers={workers}"]
    completed = run_pipeline(tiny_job, "--runs-dir", runs, *options, code=1)
    is_told(completed)
    assert said in completed.stderr
    told = record(runs)
    assert (told["status"], told["exit_code"]) == ("failed", 1) and told["error"]
    assert not (runs / "job" / "latest").exists()
    events = next(runs.glob("job/2*/events.jsonl")).read_text()
    assert "Traceback" in events, "the traceback is kept for whoever wants it"
    assert [json.loads(line) for line in events.splitlines()]


def test_latest_that_is_no_link_fails_the_run(tiny_job: Path, run_pipeline: Run) -> None:
    runs = tiny_job.parent / "runs"
    (runs / "job" / "latest").mkdir(parents=True)
    completed = run_pipeline(tiny_job, "--runs-dir", runs, code=1)
    is_told(completed)
    assert "latest cannot be pointed to this run" in completed.stderr
    assert (record(runs)["status"], record(runs)["exit_code"]) == ("failed", 1)
    (runs / "job" / "latest").rmdir()
    run_pipeline(tiny_job, "--runs-dir", runs)
    assert (runs / "job" / "latest" / "run.json").exists()


def start(root: Path, job: Path, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.run", str(job), "--runs-dir", str(runs), *arguments]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_stop_in_a_beam_step_is_a_stop(
    tiny_job: Path, root: Path, run_pipeline: Run, workers: int
) -> None:
    """Beam turns an exception in a step into an error of its own, at some moments."""
    moments = random.Random(workers)
    for number in [signal.SIGTERM, signal.SIGINT] * 2:
        runs = tiny_job.parent / f"runs-{number}-{moments.random()}"
        options = ["--set", "second.does=slow", "--set", f"beam.direct_num_workers={workers}"]
        process = start(root, tiny_job, runs, *options)
        while not list(runs.glob("store/work/second-*/scratch/s/*.json")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number, errors
        assert f"stopped by {signal.Signals(number).name} in second" in errors
        assert "Traceback" not in errors
        told = record(runs)
        assert (told["status"], told["exit_code"]) == ("stopped", 128 + number)
        assert told["unfinished"].startswith("second-")


def test_a_stop_that_a_stage_swallows_is_still_a_stop(tiny_job: Path, root: Path) -> None:
    runs = tiny_job.parent / "runs"
    process = start(root, tiny_job, runs, "--set", "second.does=swallow")
    while not list(runs.glob("store/work/second-*/ready")):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and record(runs)["status"] == "stopped", errors


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06, 0.1, 0.2, 0.4])
def test_ctrl_c_before_the_run_begins_shows_no_traceback(
    tiny_job: Path, root: Path, delay: float
) -> None:
    process = start(root, tiny_job, tiny_job.parent / "runs", "--set", "second.does=slow")
    # Python itself catches the signal from its start on, with a traceback, until our code loads.
    for python_catches in (True, False):
        while process.poll() is None and _catches_interrupts(process.pid) != python_catches:
            time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in errors


def _catches_interrupts(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = re.findall(r"SigCgt:\t([0-9a-f]+)", status)
    return bool(int(caught, 16) & 1 << (signal.SIGINT - 1))


def test_a_console_that_is_closed_stops_nothing(tiny_job: Path, root: Path) -> None:
    runs = tiny_job.parent / "runs"
    process = start(root, tiny_job, runs)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=60) == 0 and record(runs)["status"] == "complete"


FINALIZER = """\
import signal, sys, time
from pipelines.running.stops import Stopped, StopSignals

class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.01)

class Wrong:
    def __del__(self):
        raise ValueError("told as ever")

try:
    with StopSignals() as signals:
        one = Last()
        del one
        print("went on", flush=True)
        two = Wrong()
        del two
        time.sleep(30)
except Stopped as stop:
    print(stop, stop.exit_code)
"""


def test_a_stop_that_python_drops_comes_again(root: Path) -> None:
    """Exceptions in finalizers, and in callbacks of weak references, are only printed."""
    completed = subprocess.run(
        [sys.executable, "-c", FINALIZER], cwd=root, capture_output=True, text=True, timeout=25
    )
    assert completed.stdout.splitlines() == ["went on", "SIGTERM 143"]
    assert "told as ever" in completed.stderr and "Stopped" not in completed.stderr


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_terminal_that_is_closed(tiny_job: Path, root: Path, ignored: bool) -> None:
    """The run stops; with nohup, it goes on."""
    runs = tiny_job.parent / "runs"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = start(root, tiny_job, runs, "--set", "second.does=slow")
    finally:
        signal.signal(signal.SIGHUP, before)
    while not list(runs.glob("store/work/second-*/scratch/s/*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (0 if ignored else 129), errors
    assert record(runs)["status"] == ("complete" if ignored else "stopped")


def test_a_killed_run_is_closed_by_the_next(tiny_job: Path, root: Path, run_pipeline: Run) -> None:
    runs = tiny_job.parent / "runs"
    process = start(root, tiny_job, runs, "--set", "second.does=slow", "--set", "second.size=40")
    while not list(runs.glob("store/work/second-*/scratch/s/*.json")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert record(runs)["status"] == "running"
    killed = next(runs.glob("job/2*"))
    shutil.copytree(killed, runs / "job" / "backup")  # sorts after every run
    run_pipeline(
        tiny_job, "--runs-dir", runs, "--set", "second.does=slow", "--set", "second.size=40"
    )
    assert json.loads((killed / "run.json").read_text())["status"] == "stopped"
    assert not list(runs.glob("job/*/.room"))


def test_a_clock_that_was_set_back_changes_no_order(tiny_job: Path, run_pipeline: Run) -> None:
    runs = tiny_job.parent / "runs"
    (runs / "job").mkdir(parents=True)
    run_pipeline(tiny_job, "--runs-dir", runs)
    first = next(runs.glob("job/2*"))
    ahead = first.rename(first.with_name("20990101T000000-000000-aaaa"))
    facts = json.loads((ahead / "run.json").read_text()) | {"run": ahead.name}
    (ahead / "run.json").write_text(json.dumps(facts))
    run_pipeline(tiny_job, "--runs-dir", runs, "--set", "second.size=3")
    names = sorted(path.name for path in runs.glob("job/2*"))
    assert names[0] == ahead.name and names[1].startswith("20990101T000000-000001-")
    assert (runs / "job" / "latest").resolve().name == names[1]


@pytest.mark.parametrize("kilobytes", [8, 112, 264, 280, 400, 700])
def test_a_full_disk_is_told_and_survived(
    tiny_job: Path,
    run_pipeline: Run,
    small_disk: Callable[[int], Path],
    artifact_bytes: Callable[[Path], dict[str, bytes]],
    kilobytes: int,
) -> None:
    disk = small_disk(kilobytes * 1024)
    options = ["--set", "first.size=300000"]
    run_pipeline(tiny_job, "--runs-dir", tiny_job.parent / "whole", *options)
    completed = run_pipeline(tiny_job, "--runs-dir", disk / "runs", *options, code=None)
    if completed.returncode:
        assert completed.returncode == 1
        is_told(completed)
        assert "No space left on device" in completed.stderr
        assert "make room on the disk of" in completed.stderr
        for path in disk.glob("runs/job/*/run.json"):
            assert json.loads(path.read_text())["status"] == "failed"
    else:
        assert kilobytes > 600
    subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    run_pipeline(tiny_job, "--runs-dir", disk / "runs", *options)
    assert artifact_bytes(disk / "runs") == artifact_bytes(tiny_job.parent / "whole")


def test_a_disk_that_became_read_only(
    tiny_job: Path,
    run_pipeline: Run,
    small_disk: Callable[[int], Path],
    artifact_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    """As Linux makes one that has errors: all of it, then the folder of results alone. Root cannot
    write there either."""
    disk = small_disk(10_000_000)
    runs = disk / "runs"
    run_pipeline(tiny_job, "--runs-dir", runs)
    before = artifact_bytes(runs)
    for folder, only_results in ((disk, False), (runs / "store", True)):
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        try:
            completed = run_pipeline(tiny_job, "--runs-dir", runs, "--force", "second", code=1)
            is_told(completed)
            assert re.search(rf"{folder}/.*: Read-only file system", completed.stderr)
            assert ("failed: " in completed.stderr) == only_results
            assert "cached" in run_pipeline(tiny_job, "--runs-dir", runs, "--plan").stdout
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        assert artifact_bytes(runs) == before
    run_pipeline(tiny_job, "--runs-dir", runs, "--force", "second")
    assert artifact_bytes(runs) == before


@pytest.mark.parametrize("obstacle", ["file", "long name", "read-only"])
def test_a_runs_folder_that_cannot_be_used(
    tiny_job: Path, run_pipeline: Run, obstacle: str
) -> None:
    runs = tiny_job.parent / "runs"
    if obstacle == "file":
        runs.write_text("")
    elif obstacle == "long name":
        runs = tiny_job.parent / ("r" * 300)
    else:
        if os.geteuid() == 0:
            pytest.skip("root can write everywhere")
        runs.mkdir(mode=0o500)
    completed = run_pipeline(tiny_job, "--runs-dir", runs, code=1)
    is_told(completed)
    assert str(runs) in completed.stderr
    run_pipeline(tiny_job, "--runs-dir", runs, "--plan")


def test_a_disk_that_is_smaller_than_the_sources_is_told_before(
    tmp_path: Path, run_pipeline: Run, small_disk: Callable[[int], Path]
) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\n" + "source\ttarget\n" * 100_000)
    (tmp_path / "job.yaml").write_text(
        "stages:\n  rows: {use: ingest, source: a.tsv, columns: {text: a, target: b}}\n"
    )
    runs = small_disk(1_000_000) / "runs"
    said = "the sources have 1 MB, and the disk of"
    assert said in run_pipeline(tmp_path / "job.yaml", "--runs-dir", runs, "--plan").stderr
    assert said in run_pipeline(tmp_path / "job.yaml", "--runs-dir", runs, code=None).stderr
    assert said not in run_pipeline(tmp_path / "job.yaml", "--plan").stderr
