"""How fast a piece of work goes: its recent speed, from which the time that is left is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT = 180.0
"""Seconds of work that the speed is measured over."""
PAUSE, UNUSUAL = 30.0, 10.0
"""A time without progress counts as a pause, in which the machine slept or the process was stopped,
if it is longer than `PAUSE` seconds and `UNUSUAL` times as long as any before it."""


class Pace:
    """The speed of one piece of work. What was done before it started here, as after a resume, does
    not count, and neither do pauses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: gives seconds.
        """
        self.clock = clock
        self.last: float | None = None
        self.longest = self.paused = 0.0
        self.seen: deque[tuple[float, float]] = deque()
        """(seconds of work, amount done), about one a second."""
        self.now = (0.0, 0.0)

    def reach(self, done: float) -> None:
        """Says how much is done now."""
        moment = self.clock()
        if self.last is not None:
            gap = moment - self.last
            if gap > PAUSE and 0 < UNUSUAL * self.longest < gap:
                self.paused += gap - self.longest
            # A pause is no measure of what is usual, but the same again, as validation, is.
            self.longest = max(self.longest, min(gap, 2 * PAUSE))
        self.last = moment
        self.now = (moment - self.paused, done)
        if not self.seen or self.now[0] - self.seen[-1][0] >= 1.0:
            self.seen.append(self.now)
        while len(self.seen) > 2 and self.seen[1][0] <= self.now[0] - RECENT:
            self.seen.popleft()

    @property
    def rate(self) -> float:
        """Units a second; 0 if nobody can say yet."""
        if not self.seen:
            return 0.0
        seconds, done = self.seen[0]
        return (self.now[1] - done) / max(1e-9, self.now[0] - seconds)
