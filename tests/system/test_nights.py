"""A job that a scheduler starts every night: what those who watch it are told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.finished.missing import main as missing
from pipelines.running.events import Events
from pipelines.running.heart import Heart
from pipelines.store.leases import lock

Run = Callable[..., subprocess.CompletedProcess[str]]
TELL = """\
import json, sys
told = json.load(sys.stdin)
with open("told.jsonl", "a") as file:
    facts = [told["event"], told["run"]["variables"]["date"], told["run"]["status"], told["text"]]
    file.write(json.dumps(facts) + "\\n")
"""
NIGHTS = """\
name: job
variables: {date: 2026-11-01, size: 5, does: ""}
expected: 30s
notify:
  when: always
  command: [PYTHON, tell.py]
metrics: {file: job.prom}
stages:
  first: {use: 'tiny_stages:Makes', size: 7}
  second: {use: 'tiny_stages:Makes', size: "${size}", does: "${does}", scored: true}
gates: [quality >= 1]
"""


@pytest.fixture
def job(tiny_job: Path) -> Path:
    (tiny_job.parent / "tell.py").write_text(TELL)
    tiny_job.write_text(NIGHTS.replace("PYTHON", json.dumps(sys.executable)))
    return tiny_job


def told(job: Path) -> list[list[str]]:
    path = job.parent / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(job: Path) -> dict[str, float]:
    families = text_string_to_metric_families((job.parent / "job.prom").read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def newest(runs: Path) -> Path:
    return max(path for path in runs.glob("job/2*") if not path.is_symlink())


def command(job: Path, *settings: str) -> list[str]:
    options = [word for setting in settings for word in ("--set", setting)]
    return [str(job), "--runs-dir", str(job.parent / "runs"), *options]


def test_a_week(
    job: Path, root: Path, run_pipeline: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven nights: the third has a bad score, the fifth is killed, the seventh is late."""
    runs = job.parent / "runs"
    dates = [f"2026-11-{day}" for day in range(23, 30)]

    def night(number: int, *settings: str, code: int = 0) -> str:
        of_date = [f"variables.date={dates[number - 1]}", f"variables.size={number}"]
        return run_pipeline(*command(job, *of_date, *settings), code=code).stderr

    night(1)
    night(2)
    assert [event for event, *_ in told(job)] == ["success", "success"]
    good = numbers(job)["pipeline_last_success_timestamp_seconds"]
    assert numbers(job)["pipeline_score"] == 2

    said = night(3, "variables.size=0", code=3)
    assert "gate quality >= 1: FAILED with 0" in said
    assert told(job)[-1][:3] == ["gate", dates[2], "gate failed"]
    assert "quality >= 1: FAILED with 0" in told(job)[-1][3]
    assert numbers(job)["pipeline_run_exit_code"] == 3
    assert numbers(job)["pipeline_gate_passed"] == 0 and numbers(job)["pipeline_score"] == 0
    assert numbers(job)["pipeline_last_success_timestamp_seconds"] == good
    assert (runs / "job" / "latest").resolve() != newest(runs)

    time.sleep(1)  # the times of runs are in seconds
    night(4)
    assert told(job)[-1][:3] == ["recovery", dates[3], "complete"]
    assert numbers(job)["pipeline_last_success_timestamp_seconds"] > good

    before = (job.parent / "job.prom").read_text()
    slow = command(job, f"variables.date={dates[4]}", "variables.does=slow", "variables.size=200")
    process = subprocess.Popen([sys.executable, "-m", "pipelines.run", *slow], cwd=root)
    while not list(runs.glob("store/work/second-*/scratch/s/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(told(job)) == 4 and (job.parent / "job.prom").read_text() == before

    night(6)
    assert [facts[:3] for facts in told(job)[4:]] == [
        ["failure", dates[4], "stopped"],
        ["recovery", dates[5], "complete"],
    ]
    assert told(job)[4][3].endswith("stopped: killed, or the machine stopped")

    late = night(7, "expected=1s", "variables.does=slow", "variables.size=60")
    assert "this run takes longer than expected: 1 s" in late
    assert [facts[:3] for facts in told(job)[6:]] == [
        ["late", dates[6], "running"],
        ["success", dates[6], "complete"],
    ]
    assert numbers(job)["pipeline_run_late"] == 1 and numbers(job)["pipeline_run_exit_code"] == 0

    subprocess.run([sys.executable, "-m", "pipelines.report", str(runs)], cwd=root, check=True)
    listed = json.loads((runs / "site" / "runs.json").read_text())
    assert [(run["variables"]["date"], run["status"], run["late"]) for run in listed] == [
        (dates[0], "complete", False),
        (dates[1], "complete", False),
        (dates[2], "gate failed", False),
        (dates[3], "complete", False),
        (dates[4], "stopped", False),
        (dates[5], "complete", False),
        (dates[6], "complete", True),
    ]

    assert missing([str(runs / "job"), "--from", dates[0], "--to", dates[6]]) == 0
    assert capsys.readouterr().out.split() == [dates[2], dates[4]]
    assert missing([str(runs / "job"), "--to", dates[6]]) == 0
    assert capsys.readouterr().out.split() == [dates[2], dates[4]], "from the first date on"
    assert missing([str(runs / "job"), "--variable", "day"]) == 2
    assert "give --from DATE" in capsys.readouterr().err
    for number in (3, 5):
        night(number, "baseline=none")
    assert missing([str(runs / "job"), "--to", dates[6]]) == 0
    assert capsys.readouterr().out == ""


def test_nobody_can_be_told_and_the_run_is_as_it_was(job: Path, run_pipeline: Run) -> None:
    (job.parent / "tell.py").unlink()
    (job.parent / "job.prom").mkdir()
    completed = run_pipeline(*command(job))
    assert "nobody was told by command that job" in completed.stderr
    assert "metrics cannot be written to" in completed.stderr
    runs = job.parent / "runs"
    assert (runs / "job" / "latest").resolve() == newest(runs)


def test_a_stop_while_a_killed_run_is_told_of_is_a_stop(
    job: Path, root: Path, run_pipeline: Run
) -> None:
    """Telling people can take long; the run that is told to stop meanwhile says how it ended."""
    runs = job.parent / "runs"
    run_pipeline(*command(job, "variables.size=3"))
    before = newest(runs)
    record = json.loads((before / "run.json").read_text())
    (before / "run.json").write_text(json.dumps(record | {"status": "running"}))
    hangs = "notify={when: failure, command: [sh, -c, 'touch begun; exec sleep 4']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.run", *command(job, hangs)], cwd=root
    )
    while not (job.parent / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 143
    ended = json.loads((newest(runs) / "run.json").read_text())
    assert newest(runs) != before and (ended["status"], ended["exit_code"]) == ("stopped", 143)
    killed = json.loads((before / "run.json").read_text())
    assert killed["status"] == "stopped" and killed["ended"], "so that it can be passed on"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_heart_beats_while_people_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.running.heart.BEAT", 0.1)
    events = Events(tmp_path / "events.jsonl")
    begun: list[float] = []

    def late() -> None:
        begun.append(time.monotonic())
        time.sleep(1)
        raise OSError("nobody is there")

    with Heart(events, 0.2, late) as heart:
        heart.every = 0.1
        time.sleep(1)
    events.close()
    events.record("late", note="nothing is written any more, and nothing raised")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(begun) == 1 and len(lines) >= 6
    assert {line["event"] for line in lines} == {"heartbeat"}


def test_a_run_waits_for_the_one_before(job: Path, root: Path, run_pipeline: Run) -> None:
    runs = job.parent / "runs"
    (runs / "job").mkdir(parents=True)
    with lock(runs / "job" / ".lock"):
        started = time.monotonic()
        run_pipeline(*command(job), "--wait", "1", code=75)
        assert time.monotonic() - started >= 1
        words = [sys.executable, "-m", "pipelines.run", *command(job), "--wait", "120"]
        waiting = subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        first = waiting.stderr.readline()
        assert first == "waiting for another run of pipeline 'job' to end, for up to 120 s\n"
        run_pipeline(*command(job, "name=other"))  # makes the same results meanwhile
    _, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    assert "second: cached" in errors, "what others made is looked at after the wait"


def test_the_console_in_json(job: Path, run_pipeline: Run) -> None:
    settings = command(job, "variables.does=slow", "variables.size=3", "gates=[quality >= 9]")
    completed = run_pipeline(*settings, "--log-format", "json", "--run-id", "scheduled__1", code=3)
    lines = [json.loads(line) for line in completed.stderr.splitlines()]
    folder = newest(job.parent / "runs")
    stored = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line for line in lines if line in stored] == stored, "every event, in order"
    assert {"event", "time"} <= set.intersection(*(set(line) for line in lines))
    assert any("gate quality >= 9: FAILED" in str(line.get("message")) for line in lines)
    assert json.loads((folder / "run.json").read_text())["scheduled_as"] == "scheduled__1"
    (job.parent / "tiny_stages.py").write_text("raise RuntimeError('no module of yours')")
    refused = run_pipeline(*command(job), "--log-format", "json", code=2)
    assert all(json.loads(line)["message"] for line in refused.stderr.splitlines())
    refused = run_pipeline(*command(job, "no.such=1"), "--log-format", "json", code=2)
    assert all(json.loads(line)["message"] for line in refused.stderr.splitlines())


def test_signs_of_life(job: Path, root: Path) -> None:
    """What systemd waits for comes at half its time, and tells what is being done."""
    import os
    import socket

    address = str(job.parent / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(60)
        slow = command(job, "variables.does=slow", "variables.size=60")
        environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.run", *slow], cwd=root, env=environment
        )
        got: list[str] = []
        while not got or got[-1] != "STOPPING=1":
            got.append(listening.recv(1000).decode())
        assert process.wait(timeout=60) == 0
    assert got[0] == "READY=1"
    assert any(text.startswith("WATCHDOG=1\nSTATUS=second, s") for text in got), got
    events: list[dict[str, Any]] = [
        json.loads(line)
        for line in (newest(job.parent / "runs") / "events.jsonl").read_text().splitlines()
    ]
    beats = [event for event in events if event["event"] == "heartbeat"]
    assert len(beats) >= 4
    assert any(beat.get("work") == "s" and beat.get("stage") == "second" for beat in beats)
