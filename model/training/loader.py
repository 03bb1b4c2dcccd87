"""Batches that are ready before they are needed: a thread draws and pads those of the next steps
while this one is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from model.training.rows import Part, TrainingRows

AHEAD = 2
"""Steps."""
PATIENCE = 5.0
"""Seconds to wait for the thread to end; it may be passing over the steps before a resumed one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A step, and the batches of the parts that this process computes."""

    parts: Sequence[Part]
    batches: dict[int, tuple[dict[str, Tensor], Tensor]]
    """Sources and targets, by the number of the part."""

    @classmethod
    def of(cls, rows: TrainingRows, parts: Sequence[Part], numbers: Sequence[int]) -> Step:
        return cls(parts, {n: rows.batch(parts[n].rows, parts[n].turns) for n in numbers})


class Ahead(Generic[T]):
    """An endless iterator whose next items a thread makes; closes when it is left."""

    def __init__(self, items: Iterator[T], count: int = AHEAD) -> None:
        self._items = items
        self._ready: queue.Queue[T | BaseException] = queue.Queue(count)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._make, daemon=True)

    def __enter__(self) -> Ahead[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:  # raised where the item is needed
            self._put(error)

    def _put(self, item: T | BaseException) -> bool:
        while not self._over.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self) -> T:
        """The next item. Raises what its making raised."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item


def steps_of(
    rows: TrainingRows,
    steps: Iterator[Sequence[Part]],
    numbers: Callable[[int], Sequence[int]],
) -> Iterator[Step]:
    """The steps with their batches.

    Args:
        numbers: which of so many parts this process computes.
    """
    for parts in steps:
        yield Step.of(rows, parts, numbers(len(parts)))
