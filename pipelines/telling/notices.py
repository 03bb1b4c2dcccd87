"""Tells people and programs how a run went. Nothing that goes wrong here changes how it went."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from tenacity import Retrying, stop_after_attempt, wait_random_exponential

from pipelines.contracts.runs import RunRecord
from pipelines.telling.options import (
    BAD,
    Event,
    NoticeConfig,
    SettingError,
    from_environment,
    told_safely,
)

TRIES, LONGEST_WAIT = 3, 8.0
MOST_TEXT = 1000
"""Characters of what happened that an environment and the console get."""
COMMAND_SECONDS, REQUEST_SECONDS = 60, 20


def event_of(record: RunRecord, before: RunRecord | None) -> Event:
    """What is to be told of a run that has ended.

    Args:
        before: the last run before it that had ended.
    """
    if record.status == "gate failed":
        return "gate"
    if record.status != "complete":
        return "failure"
    return "success" if before is None or before.status == "complete" else "recovery"


def sentence_of(event: Event, record: RunRecord) -> str:
    """What happened, for a person."""
    name = f"{record.pipeline} {record.run}"
    if event == "late":
        return f"{name} takes longer than expected; it is still running"
    if event == "recovery":
        return f"{name} is complete again"
    if event == "gate":
        failed = [gate.message for gate in record.gates if not gate.passed]
        return f"{name}: {'; '.join(failed)}"
    if event == "failure":
        return f"{name} {record.status}: {record.error or 'it was told to stop'}"
    return f"{name} is complete"


def send(
    notices: Sequence[NoticeConfig],
    event: Event,
    record: RunRecord,
    folder: Path,
    base: Path,
    problem: Callable[[str], None],
) -> list[str]:
    """Tells everyone who wants to know of an event; returns the ways in which it was told.

    Args:
        folder: the run's.
        base: where commands are started: the pipeline file's folder.
        problem: is told, in a sentence, what could not be told.
    """
    told: list[str] = []
    text = sentence_of(event, record)
    body = {"event": event, "text": text, "folder": str(folder), "run": record.to_json()}
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    for notice in notices:
        if not notice.wants(event):
            continue
        way = "command" if notice.command else "webhook" if notice.webhook else "apprise"
        try:
            attempts = Retrying(
                stop=stop_after_attempt(1 if record.status == "stopped" else TRIES),
                wait=wait_random_exponential(multiplier=1, max=LONGEST_WAIT),
                reraise=True,
            )
            attempts(_WAYS[way], notice, event, text, data, folder.absolute(), base)
            told.append(way)
        except Exception as error:  # a program, a server or a library: each has its own
            what = text.splitlines()[0][:MOST_TEXT]
            why = str(error) if notice.command else told_safely(error)
            problem(f"nobody was told by {way} that {what}: {why}")
    return told


def _command(
    notice: NoticeConfig, event: Event, text: str, data: bytes, folder: Path, base: Path
) -> None:
    assert notice.command is not None
    # An environment has limits, and the whole is on the input.
    short = text[:MOST_TEXT].replace("\0", "")
    known = {"PIPELINE_EVENT": event, "PIPELINE_TEXT": short, "PIPELINE_RUN": str(folder)}
    done = subprocess.run(
        notice.command, input=data, cwd=base, env={**os.environ, **known}, timeout=COMMAND_SECONDS,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise RuntimeError(f"exit code {done.returncode} {said[-500:]}".strip())


def _webhook(
    notice: NoticeConfig, event: Event, text: str, data: bytes, folder: Path, base: Path
) -> None:
    url = from_environment(notice.webhook or "")
    if not url.startswith(("http://", "https://")):
        raise SettingError("a webhook begins with http:// or https://")
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(NoRedirects).open(request, timeout=REQUEST_SECONDS):
        pass


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Following one would turn the request into another, without what is to be told."""

    def redirect_request(self, *_: object) -> None:
        return None


def _apprise(
    notice: NoticeConfig, event: Event, text: str, data: bytes, folder: Path, base: Path
) -> None:
    try:
        import apprise
    except ImportError as error:
        raise SettingError("it needs Apprise: pip install '.[notify]'") from error
    way = apprise.Apprise()
    if not way.add(from_environment(notice.apprise or "")):
        raise SettingError("that is no URL of Apprise's")
    kind = apprise.NotifyType.FAILURE if event in (*BAD, "late") else apprise.NotifyType.SUCCESS
    if not way.notify(body=f"{text}\n{folder}", title=f"pipeline: {event}", notify_type=kind):
        raise SettingError("Apprise could not send it")


_WAYS = {"command": _command, "webhook": _webhook, "apprise": _apprise}
