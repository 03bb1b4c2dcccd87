"""What a run reports: `events.jsonl` for programs, progress bars or plain lines for people; or the
events on the console too, for programs that collect what containers print."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipelines.contracts.shown import complain, tell
from pipelines.running.pace import Pace

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

PLAIN_INTERVAL = 10.0
"""Seconds between lines of progress if there is no terminal."""


class Events:
    """Writes every event as one JSON line and shows it on the console.

    A terminal gets bars with the rate and the time left; anything else gets plain lines at times.
    """

    def __init__(
        self, path: Path | None, stream: TextIO | None = None, as_json: bool = False
    ) -> None:
        """
        Args:
            as_json: whether the console gets every event as a line of JSON.
        """
        # A descriptor of our own: while Beam runs, descriptor 2 is its workers' log.
        self.stream = stream or _own_console()
        self.as_json = as_json
        self.terminal = self.stream.isatty() and not as_json
        # Half a surrogate pair, as in the name of a file, is written as JSON escapes it.
        self.file = path.open("a", encoding="utf-8", errors="backslashreplace") if path else None
        self.stage = ""
        self.work: dict[str, Any] = {}
        """What is being done now, and how much of it is done."""
        self.writing = threading.Lock()

    def close(self) -> None:
        with self.writing, suppress(OSError):
            if self.file:
                self.file.close()

    def record(self, event: str, **facts: Any) -> None:
        """Appends to `events.jsonl` without showing it to people."""
        line = self._line(event, facts)
        if self.as_json:
            tell(line, self.stream)
        with self.writing:
            if self.file and not self.file.closed:
                self.file.write(line + "\n")
                self.file.flush()

    def _line(self, event: str, facts: dict[str, Any]) -> str:
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {"stage": self.stage} if self.stage else {}
        return json.dumps({"time": moment, "event": event, **known, **facts}, ensure_ascii=False)

    def say(self, message: str, **facts: Any) -> None:
        self.record("message", message=message, **facts)
        if not self.as_json:
            self.show(f"{self.stage}: {message}" if self.stage else message)

    def show(self, line: str) -> None:
        """Shows a line that is not recorded."""
        if self.as_json:
            line = self._line("message", {"message": line.strip()})
        tell(line, self.stream)

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str) -> Iterator[ConsoleMeter]:
        """Progress of `total` units of work; see `pipelines.stage.Meter`."""
        bars = self._bars(unit) if self.terminal else None
        meter = ConsoleMeter(self, label, total, unit, bars)
        self.record("started", work=label, total=total, unit=unit)
        outer, self.work = self.work, {"work": label, "done": 0.0, "total": total}
        try:
            if bars:
                bars.start()
            yield meter
            meter.finish()
        finally:
            self.work = outer
            if bars:
                bars.stop()

    def _bars(self, unit: str) -> Bars:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(file=self.stream),
        )


def complainer(as_json: bool) -> Callable[[str], None]:
    """What says something on the console where there is no run to record it in."""
    return Events(None, as_json=True).show if as_json else complain


def _own_console() -> TextIO:
    """Standard error by a descriptor of our own; nothing, if there is none, as for a daemon."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")


class ConsoleMeter:
    """One bar, or one series of plain lines."""

    def __init__(
        self, events: Events, label: str, total: float | None, unit: str, bars: Bars | None
    ) -> None:
        self.events, self.label, self.total, self.unit, self.bars = events, label, total, unit, bars
        self.done = 0.0
        self.note = ""
        self.pace = Pace()
        self.started = self.shown = time.monotonic()
        self.task: TaskID | None = None
        if bars:
            shown = f"{events.stage} {label}".strip()
            self.task = bars.add_task(shown, total=total, rate="", note="")

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.reach(self.done + amount, note)

    def reach(self, done: float, note: str = "") -> None:
        self.done, self.note = done, note or self.note
        self.events.work = {"work": self.label, "done": done, "total": self.total}
        self.pace.reach(done)
        if self.bars and self.task is not None:
            rate = f"{self.pace.rate:,.1f}/s"
            self.bars.update(self.task, completed=done, rate=rate, note=self.note)
        elif time.monotonic() - self.shown > PLAIN_INTERVAL:
            self.shown = time.monotonic()
            if not self.events.as_json:
                self.events.show(self.line())
            self.events.record(
                "progress", work=self.label, done=done, total=self.total, note=self.note
            )

    def line(self) -> str:
        share = f"/{self.total:,.0f}" if self.total else ""
        left, rate = "", self.pace.rate
        if self.total and self.done < self.total and rate > 0:
            left = f", {(self.total - self.done) / rate:,.0f} s left"
        note = f", {self.note}" if self.note else ""
        stage = f"{self.events.stage} " if self.events.stage else ""
        return (
            f"{stage}{self.label}: {self.done:,.0f}{share} {self.unit}, {rate:,.1f}/s{left}{note}"
        )

    def finish(self) -> None:
        seconds = time.monotonic() - self.started
        self.events.record(
            "finished", work=self.label, done=self.done, unit=self.unit, seconds=round(seconds, 3)
        )
        if not self.bars and not self.events.as_json:
            self.events.show(self.line())
