"""Stages that fail for a while, or take too long."""

from __future__ import annotations

import errno
import json
import signal
import socket
import subprocess
import sys
import time
from email.message import Message
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest

from pipelines.running.attempts import StageTimeoutError, attempted, is_transient, limited
from pipelines.running.workers import WorkerDiedError
from pipelines.store.sources import SourceError

QUICK = """\
import sys
from pipelines.running import attempts
attempts.FIRST_WAIT, attempts.GRACE, attempts.AGAIN = 0.2, 1.0, 0.3
from pipelines.run import main
sys.exit(main(sys.argv[1:]))
"""


def run(
    root: Path, job: Path, *settings: str, code: int = 0
) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """The record, what the console said, and the events of a run whose waits are short."""
    runs = job.parent / "runs"
    options = [word for setting in settings for word in ("--set", setting)]
    completed = subprocess.run(
        [sys.executable, "-c", QUICK, str(job), "--runs-dir", str(runs), *options],
        cwd=root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert completed.returncode == code, completed.stderr
    newest = max(path for path in runs.glob("job/2*") if not path.is_symlink())
    lines = (newest / "events.jsonl").read_text().splitlines()
    record: dict[str, Any] = json.loads((newest / "run.json").read_text())
    return record, completed.stderr, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("does", "workers"), [("flaky", 1), ("flaky worker", 1), ("flaky worker", 2)]
)
def test_what_fails_twice_succeeds_in_the_third_attempt(
    tiny_job: Path, root: Path, does: str, workers: int
) -> None:
    beam = f"beam.direct_num_workers={workers}"
    record, said, events = run(root, tiny_job, f"second.does={does}", "second.retries=2", beam)
    assert record["stages"]["first"]["attempts"] == 1
    assert record["stages"]["second"]["attempts"] == 3
    assert "second: attempt 1 failed" in said and "retry 2 of 2 comes in" in said
    failed = [event for event in events if event["event"] == "failed"]
    assert [event["attempt"] for event in failed] == [1, 2]
    assert all("no such luck" in event["error"] for event in failed)


def test_without_retries_the_first_failure_is_the_last(tiny_job: Path, root: Path) -> None:
    record, said, _ = run(root, tiny_job, "second.does=flaky", code=1)
    assert record["status"] == "failed" and "second failed: no such luck" in said.lower()
    record, said, _ = run(root, tiny_job, "second.does=flaky", "retries=1")
    assert record["stages"]["second"]["attempts"] == 2, "of all stages; one attempt was before"


@pytest.mark.parametrize("does", ["wrong", "exit", "recursion", "interrupt"])
def test_what_is_wrong_is_tried_once(tiny_job: Path, root: Path, does: str) -> None:
    _, said, events = run(root, tiny_job, f"second.does={does}", "retries=3", code=1)
    assert "attempt" not in said
    assert len([event for event in events if event["event"] == "failed"]) == 1


def test_a_stage_that_takes_too_long_fails_and_is_made_whole_later(
    tiny_job: Path, root: Path
) -> None:
    started = time.monotonic()
    slow = ["second.does=hang", "second.timeout=1.5s", "second.retries=1"]
    record, said, _ = run(root, tiny_job, *slow, code=1)
    assert time.monotonic() - started < 40
    assert record["status"] == "failed"
    assert "second failed: an attempt took longer than its timeout of 1.5 s" in said
    assert "retry 1 of 1" in said
    record, _, _ = run(root, tiny_job, "second.timeout=1m", "second.size=3")
    assert record["status"] == "complete"
    files = next(tiny_job.parent.glob("runs/store/artifacts/second-*")).iterdir()
    assert sorted(path.name for path in files) == ["a.txt", "manifest.json"]


def test_a_beam_job_that_takes_too_long(tiny_job: Path, root: Path) -> None:
    beam = "beam.direct_num_workers=2"
    slow = ["second.does=slow", "second.size=400", "second.timeout=3s", beam]
    record, said, _ = run(root, tiny_job, *slow, code=1)
    assert "second failed: an attempt took longer than its timeout of 3 s" in said
    assert record["unfinished"].startswith("second-")


def test_a_process_that_cannot_be_interrupted_ends_itself(tiny_job: Path, root: Path) -> None:
    started = time.monotonic()
    record, said, _ = run(root, tiny_job, "second.does=stuck", "second.timeout=1s", code=1)
    assert time.monotonic() - started < 40
    assert record["status"] == "running", "nobody could write it down"
    assert "in run" in said and "tiny_stages.py" in said, "where it hangs"
    record, _, _ = run(root, tiny_job)
    assert record["status"] == "complete"


def raised(*errors: BaseException) -> BaseException:
    """The first of several errors, of which each was caused by the next."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def while_handling(error: BaseException, handled: BaseException) -> BaseException:
    """An error that came up while another was handled, which has nothing to do with it."""
    error.__context__ = handled
    return error


BOTH = (
    "Traceback (most recent call last):\n  File ...\n{}\n\nDuring handling of the above exception, "
    "another exception occurred:\n\nTraceback (most recent call last):\n  File ...\n{}\n"
)
TRACE = "Traceback (most recent call last):\n  File ...\n{}\n\nThe above: ..."


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("timed out"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "not allowed"), False),
        (WorkerDiedError("a worker process died"), True),
        (StageTimeoutError("an attempt took longer"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (URLError(socket.gaierror(socket.EAI_AGAIN, "Temporary failure")), True),
        (URLError(ConnectionRefusedError(errno.ECONNREFUSED, "refused")), True),
        (URLError("no host given"), False),
        (HTTPError("http://a", 503, "busy", Message(), None), True),
        (HTTPError("http://a", 404, "gone", Message(), None), False),
        (raised(SourceError("a cannot be read"), HTTPError("a", 503, "", Message(), None)), True),
        (raised(SourceError("a cannot be read"), HTTPError("a", 404, "", Message(), None)), False),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), True),
        (while_handling(OSError(errno.ENOSPC, "No space left"), ConnectionResetError()), False),
        (while_handling(ValueError("bad row"), ConnectionResetError()), False),
        (raised(OSError(errno.ENOSPC, "No space left"), ConnectionResetError()), False),
        (RuntimeError(BOTH.format("ConnectionError: a", "ValueError: bad row")), False),
        (RuntimeError(BOTH.format("KeyError: a", "ConnectionError: b")), True),
        (ValueError("row 3 speaks of a TimeoutError: it is text"), False),
        (raised(SourceError("s3://b/a cannot be read"), ConnectionResetError("reset")), True),
        (raised(SourceError("a.tsv is missing"), FileNotFoundError(2, "no such file")), False),
        (RuntimeError(TRACE.format("botocore.exceptions.ReadTimeoutError: Read timeout")), True),
        (RuntimeError(TRACE.format("ConnectionRefusedError: [Errno 111] refused")), True),
        (RuntimeError(TRACE.format("ValueError: ConnectionRefusedError: is text")), False),
        (MemoryError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_may_pass(error: BaseException, transient: bool) -> None:
    assert is_transient(error) == transient


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", slept.append)
    waits: list[float] = []

    def fails() -> None:
        raise TimeoutError

    for _ in range(40):
        with pytest.raises(TimeoutError):
            attempted(fails, 8, lambda error, attempt, wait: waits.append(wait))
    assert waits == slept and len(waits) == 8 * 40
    for number, (low, high) in enumerate([(0, 10), (0, 20), (0, 40), (0, 80)]):
        of_attempt = waits[number::8]
        assert all(low <= wait <= high for wait in of_attempt)
        assert max(of_attempt) > high / 2 and len(set(of_attempt)) > 30
    assert max(waits) <= 300


def test_time_that_is_not_used_up_changes_nothing(tmp_path: Path) -> None:
    console = (tmp_path / "console").open("w")
    with limited(60, console), limited(None, console):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    with pytest.raises(KeyError), limited(60, console):
        raise KeyError
