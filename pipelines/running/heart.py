"""Signs of life while a run works, for those who watch it: an event every half minute, and what
systemd waits for. The same thread notices that a run takes longer than expected."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipelines.telling.systemd import notify, watchdog_seconds

if TYPE_CHECKING:
    from pipelines.running.events import Events

BEAT = 30.0
"""Seconds between two signs of life."""


class Heart:
    """Beats while it is entered."""

    def __init__(
        self, events: Events, expected: float | None = None, late: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            expected: seconds that the run should take.
            late: called once, when it takes longer.
        """
        self.events, self.expected, self.late = events, expected, late
        self.started = time.monotonic()
        self.stopped = threading.Event()
        self.every = min(BEAT, (watchdog_seconds() or 2 * BEAT) / 2)
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.telling: threading.Thread | None = None

    def __enter__(self) -> Self:
        notify("READY=1")
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self.thread.join(BEAT)
        if self.telling is not None:
            self.telling.join(BEAT)
        notify("STOPPING=1")

    def _beat(self) -> None:
        told = False
        while True:
            seconds = time.monotonic() - self.started
            wait = self.every
            if self.expected is not None and not told:
                wait = min(wait, max(0.0, self.expected - seconds))
            if self.stopped.wait(wait):
                return
            seconds = time.monotonic() - self.started
            work = self.events.work
            with suppress(Exception):  # a full disk is told by whoever needs the room
                self.events.record("heartbeat", seconds=round(seconds, 1), **work)
            shown = ", ".join(str(value) for value in (self.events.stage, *work.values()) if value)
            notify("WATCHDOG=1", f"STATUS={shown}")
            if self.expected is not None and not told and seconds >= self.expected:
                told = True
                # Telling people can take long, and the heart must go on.
                self.telling = threading.Thread(target=self.late, daemon=True)
                self.telling.start()
