"""Ctrl-C, SIGTERM, a closed terminal: whatever catches the exception that they raise, the run
stops."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

AGAIN = 0.05
"""Seconds until a signal comes again whose exception was dropped."""


class Stopped(BaseException):
    """The process got one of these signals. Not an Exception: no stage is allowed to swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.exit_code = number, 128 + number


class StopSignals:
    """These signals raise `Stopped` in the main thread while this is entered.

    The exception alone is not enough: Beam turns whatever a step raises into an error of its own.
    So the signal is remembered as well. Python drops what is raised in a finalizer; then the signal
    comes again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup ignores SIGHUP, so that a run outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._stop)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred:
            self.received = number
            raise Stopped(number)

    def _unraisable(self, event: sys.UnraisableHookArgs) -> None:
        if not isinstance(event.exc_value, Stopped):
            self._hook(event)
        elif not self.deferred:
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), event.exc_value.number))
            again.daemon = True
            again.start()

    def check(self) -> None:
        """Raises `Stopped` if a signal came, whatever became of its exception."""
        if self.received is not None:
            raise Stopped(self.received)

    def defer(self) -> None:
        """From now on signals change nothing: the run is only writing down how it ended."""
        self.deferred = True
