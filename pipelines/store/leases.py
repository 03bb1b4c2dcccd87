"""Rights to be the only one who does something: locks on this machine, leases in an object store.

A lock is a `flock`, which the kernel releases however its process ends. A lease is a row of objects
`NAME/000000`, `NAME/000001` and so on, of which the last tells whose it is: its holder writes it
again every few seconds. Whoever sees it unchanged for `DEAD` seconds by a clock of their own takes
it by creating the next one, which only one can. So no clocks are compared, and a store needs no
more than conditional creation.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.store.objects import Objects, ObjectStoreError

BEAT = 10.0
"""Seconds between two signs of life of a holder."""
DEAD = 60.0
"""Seconds without one after which a holder has lost its lease."""
HOLDER = f"{socket.gethostname()}-{secrets.token_hex(8)}"
"""What this process is called."""
_dead: dict[str, float] = {}
"""Processes that showed no life for `DEAD` seconds, and when this was seen: nothing that they hold
needs to be waited for, for as long again."""


class LockHeldError(Exception):
    """Another process holds a lock, and the caller did not want to wait for it."""


class LeaseLostError(ConnectionError):
    """This process was not able to show that it lives, so others may do its work."""


@contextmanager
def lock(
    path: Path, wait: Callable[[], None] | None = None, shared: bool = False
) -> Iterator[None]:
    """Holds an advisory lock; the kernel releases it when the process ends, however it ends.

    Args:
        wait: called about once a second while another process holds the lock; if it is None,
            `LockHeldError` is raised at once.
        shared: whether others may hold it too, if they share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise LockHeldError(str(path)) from None
                wait()
                time.sleep(1.0)
                continue
            # Whoever collects garbage removes locks too: one without a name locks nobody out.
            if _is_still(path, file.fileno()):
                yield
                return


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Beating:
    """An object that is written again and again, while its process lives."""

    def __init__(self, objects: Objects, name: str) -> None:
        self.objects, self.name, self.holder = objects, name, HOLDER
        self.facts: dict[str, object] = {"by": secrets.token_hex(8)}
        """What it says besides. `Objects.create` knows by it who wrote it."""
        self._count = 0
        self._last = time.monotonic()
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def content(self, released: bool = False) -> bytes:
        self._count += 1
        told = {"holder": self.holder, "beat": self._count, "released": released, **self.facts}
        return json.dumps(told).encode()

    def start(self) -> None:
        """Begins to beat; the object has been written."""
        self._last = time.monotonic()
        self._thread.start()

    def write(self) -> None:
        """Writes the object now."""
        with self._writing:
            self.objects.put(self.name, self.content())
        self._last = time.monotonic()

    def stop(self) -> None:
        """Ends the beating."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(BEAT)  # it may be trying to reach a store that is away

    @property
    def alive(self) -> bool:
        """Whether the others can have seen it beat in time."""
        return time.monotonic() - self._last < DEAD

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(ObjectStoreError):  # `alive` says what it means if this goes on
                self.write()


@dataclass(frozen=True)
class Lease:
    """The exclusive right to something, among all machines that use an object store."""

    beating: Beating

    def check(self) -> None:
        """Raises `LeaseLostError` if others may have taken it meanwhile."""
        name = self.beating.name
        folder, _, number = name.rpartition("/")
        if not self.beating.alive or last_of(self.beating.objects, folder)[0] != int(number):
            raise LeaseLostError(
                f"{self.beating.objects.url}/{name} was taken by another run, because this one did "
                f"not reach the store for {DEAD:g} s"
            )


def last_of(objects: Objects, name: str) -> tuple[int, bytes]:
    """The number and content of the object that says whose a lease is; -1 if it was never taken."""
    while True:
        numbers = [int(each) for each in objects.sizes(name) if each.isdecimal()]
        if not numbers:
            return -1, b""
        try:
            return max(numbers), objects.get(f"{name}/{max(numbers):06d}")
        except FileNotFoundError:
            continue  # there is a later one now


def is_free(content: bytes) -> bool:
    """Whether the last object of a lease says that nobody has it, or one who is dead."""
    try:
        if not content or json.loads(content)["released"]:
            return True
        return time.monotonic() - _dead.get(holder_of(content), -2 * DEAD) < DEAD
    except (ValueError, KeyError, TypeError):
        return False  # it is not ours to judge, but its holder does not beat


def holder_of(content: bytes) -> str:
    """Whose a lease or a hold is."""
    try:
        return str(json.loads(content)["holder"])
    except (ValueError, KeyError, TypeError):
        return ""


@contextmanager
def lease(objects: Objects, name: str, wait: Callable[[], None] | None = None) -> Iterator[Lease]:
    """Holds a lease.

    Args:
        wait: called about once a second while another process holds it; if it is None,
            `LockHeldError` is raised as soon as its holder is seen to live.
    """
    beating = _taken(objects, name, wait)
    beating.start()
    try:
        yield Lease(beating)
    finally:
        beating.stop()
        with suppress(ObjectStoreError):  # then it ends by itself
            objects.put(beating.name, beating.content(released=True))


def _taken(objects: Objects, name: str, wait: Callable[[], None] | None) -> Beating:
    seen: tuple[int, bytes] | None = None
    since = 0.0
    while True:
        asked = time.monotonic()
        there = last_of(objects, name)
        now = time.monotonic()
        if now - asked > BEAT:
            since = now  # the store was away, for the holder too
        if there != seen:
            if seen is not None and seen[0] == there[0] and wait is None and not is_free(there[1]):
                raise LockHeldError(f"{objects.url}/{name}")  # it beats
            seen, since = there, now
        number, content = there
        if now - since > DEAD:
            _dead[holder_of(content)] = now
        if is_free(content) or now - since > DEAD:
            beating = Beating(objects, f"{name}/{number + 1:06d}")
            created = objects.create(beating.name, beating.content())
            if created and last_of(objects, name)[0] != number + 1:
                # Others were faster by so much that this number had been removed again.
                objects.remove([beating.name])
                created = False
            if created:
                older = [
                    each for each in objects.sizes(name) if each < beating.name.rpartition("/")[2]
                ]
                objects.remove([f"{name}/{each}" for each in older])
                return beating
            if wait is None and is_free(content):
                raise LockHeldError(f"{objects.url}/{name}")  # another was faster
        if wait is not None:
            wait()
        time.sleep(1.0)
