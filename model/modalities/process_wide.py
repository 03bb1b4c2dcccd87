"""Settings of libraries that are the same for the whole process, put in place only while needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator

Undo = Callable[[], None]


class ProcessWide(ContextDecorator):
    """A setting that holds while any thread is inside, and is then put back as it was. So whoever
    embeds a model keeps their own settings. Can be entered again inside itself."""

    def __init__(self, put: Callable[[], Undo]) -> None:
        """
        Args:
            put: puts the setting in place, and returns what puts it back.
        """
        self.put, self.lock, self.inside = put, threading.Lock(), 0
        self.undo: Undo | None = None

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.undo = self.put()
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside and self.undo is not None:
                self.undo()
