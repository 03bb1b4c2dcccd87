"""Results as objects, for runs whose folder is an object store.

The files of a result are objects below `artifacts/NAME/ATTEMPT/`, and `artifacts/NAME/commit.json`,
which is written last and only if there is none, says which attempt is the result: nobody sees half
of one, and of two that are made at a time the first counts. Machines keep copies, and compare them
with the digests in the manifest.

`holds/` says what running processes use, and `collect` does not remove that: a run writes what it
will use before it looks for it, `collect` removes a commit before it looks at what is used.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.contracts.base import Contract
from pipelines.store import leases
from pipelines.store.leases import Beating, Lease, LeaseLostError, is_free, last_of
from pipelines.store.objects import DamagedObjectError, Objects
from pipelines.store.shared import ARTIFACTS, MANIFEST, WORK

COMMIT = "commit.json"
HOLDS, LEASES, MEASURED = "holds", "leases", "measured"
KEPT = "kept"
"""The folder, in that of unfinished work, with what another machine can go on from."""


class Commit(Contract):
    """Which attempt at a result counts."""

    attempt: str
    """The folder of its objects. No other attempt has this name."""
    seal: str
    """The seal of its manifest."""


class RemoteArtifacts:
    """The objects of a store, and what this process holds of it."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._holding: Beating | None = None
        self._held: set[str] = set()

    def commit_of(self, name: str) -> Commit | None:
        """Which attempt is a result; None if it is not there."""
        told = self.objects.get_json(f"{ARTIFACTS}/{name}/{COMMIT}")
        try:
            return None if told is None else Commit.model_validate(told)
        except ValueError as error:
            raise DamagedObjectError(
                f"{self.objects.url}/{ARTIFACTS}/{name}/{COMMIT} is damaged: {error}"
            ) from error

    def problem(self, name: str, attempt: str, sizes: dict[str, int]) -> str | None:
        """Which object of a result is not there, or not with its size; None if all are.

        Args:
            sizes: those that they should have, by path.
        """
        there = self.objects.sizes(f"{ARTIFACTS}/{name}/{attempt}")
        for path, size in sizes.items():
            if path not in there:
                return f"{path} is missing"
            if there[path] != size:
                return f"{path} has {there[path]} bytes, not {size}"
        return None

    def fetch(self, name: str, commit: Commit, digests: Mapping[str, str], folder: Path) -> None:
        """Writes the files of a result into a folder. Raises `DamagedObjectError`.

        Args:
            digests: the sha256 of each, by path.
        """
        attempt = f"{ARTIFACTS}/{name}/{commit.attempt}"

        def fetched(path: str) -> None:
            try:
                self.objects.fetch(f"{attempt}/{path}", folder / path, digests.get(path))
            except FileNotFoundError as error:
                raise DamagedObjectError(f"{self.objects.url}/{attempt}/{path} is gone") from error

        try:
            self.objects.at_once(fetched, [*digests, MANIFEST])
        except DamagedObjectError as error:
            if self.commit_of(name) == commit:
                self.objects.remove([f"{ARTIFACTS}/{name}/{COMMIT}"])
            raise DamagedObjectError(f"{error}; the next run makes it again") from error

    def publish(
        self, name: str, folder: Path, seal: str, lease: Lease | None, replace: bool
    ) -> Commit:
        """Makes a finished folder a result; returns what is the result now, which can be another.

        Args:
            lease: the right to make it, which must still be held to replace one.
            replace: whether it counts instead of one that is there.
        """
        commit = Commit(attempt=secrets.token_hex(12), seal=seal)
        self.objects.send_folder(folder, f"{ARTIFACTS}/{name}/{commit.attempt}")
        written = json.dumps(commit.to_json()).encode()
        key = f"{ARTIFACTS}/{name}/{COMMIT}"
        if self.objects.create(key, written):
            return commit
        if replace:
            if lease is not None:
                lease.check()
            self.objects.put(key, written)
            return commit
        there = self.commit_of(name)
        if there is None:  # it was collected at this moment
            self.objects.put(key, written)
            return commit
        self.objects.remove_folder(f"{ARTIFACTS}/{name}/{commit.attempt}")
        return there

    @contextmanager
    def lease(self, name: str, wait: Callable[[], None] | None) -> Iterator[Lease]:
        """The exclusive right to make a result."""
        with leases.lease(self.objects, f"{LEASES}/{name}", wait) as taken:
            yield taken

    def hold(self, fingerprint: str) -> None:
        """From now until `release`, `collect` does not remove a result."""
        if fingerprint in self._held:
            return
        holding = self._holding or Beating(self.objects, f"{HOLDS}/{secrets.token_hex(12)}")
        holding.facts["fingerprints"] = sorted({*self._held, fingerprint})
        holding.write()
        if self._holding is None:
            self._holding = holding
            holding.start()
        self._held.add(fingerprint)

    def check(self) -> None:
        """Raises `LeaseLostError` if `collect` may have taken this process for dead, and what it
        holds for free."""
        if self._holding is not None and not self._holding.alive:
            raise LeaseLostError(
                f"this run could not reach {self.objects.url} for {leases.DEAD:g} s; what it uses "
                "may have been removed"
            )

    def release(self) -> None:
        """Ends all holds of this process."""
        if self._holding is not None:
            self._holding.stop()
            self.objects.remove([self._holding.name])
        self._holding, self._held = None, set()

    def used(self) -> tuple[set[str], dict[str, bytes]]:
        """The fingerprints that processes hold or make, as far as these live, which takes `DEAD`
        seconds if one does not say so at once; and the names and contents of what the dead had."""
        first = self._signs_of_life()
        if not first:
            return set(), {}
        alive: set[str] = set()
        names = dict(first)
        end = time.monotonic() + leases.DEAD
        while names and time.monotonic() < end:
            time.sleep(min(1.0, leases.BEAT / 4))
            asked = time.monotonic()
            now = self._signs_of_life()
            if time.monotonic() - asked > leases.BEAT:
                end = time.monotonic() + leases.DEAD  # the store was away, for the others too
            for name, told in list(names.items()):
                if now.get(name) != told:
                    alive |= fingerprints_in(name, now.get(name, b"")) | fingerprints_in(name, told)
                    del names[name]
        # What began meanwhile lives.
        for name, told in self._signs_of_life().items():
            if name not in first:
                alive |= fingerprints_in(name, told)
        return alive, names

    def _signs_of_life(self) -> dict[str, bytes]:
        """The content of every hold, and of every lease that somebody has, by name."""
        told = {}
        for name in self.objects.sizes(HOLDS):
            try:
                told[f"{HOLDS}/{name}"] = self.objects.get(f"{HOLDS}/{name}")
            except FileNotFoundError:
                continue
        for name in self.objects.folders(LEASES):
            number, content = last_of(self.objects, f"{LEASES}/{name}")
            if number >= 0 and not is_free(content):
                told[f"{LEASES}/{name}"] = content
        return told

    def names(self) -> list[str]:
        """The names of all results, with those that are not finished."""
        return self.objects.folders(ARTIFACTS)

    def collect(self, keep: Collection[str]) -> Iterator[str]:
        """Removes results and unfinished work whose name is not in `keep`, and attempts that count
        no more; yields what it removed. Keeps what a running process makes or uses."""
        attempts = {name: self.objects.folders(f"{ARTIFACTS}/{name}") for name in self.names()}
        unfinished = self.objects.folders(WORK)
        used, dead = self.used()
        # Whoever has begun since then either finds a result no more, or is seen at a second look.
        doomed: dict[str, Commit] = {}
        try:
            for name in attempts:
                wanted = name in keep or _short(name) in used
                commit = None if wanted else self._good_commit(name)
                if commit is not None:
                    doomed[name] = commit
                    self.objects.remove([f"{ARTIFACTS}/{name}/{COMMIT}"])
            for name, told in self._signs_of_life().items():
                if dead.get(name) != told:
                    used |= fingerprints_in(name, told)
        except BaseException:
            for name, commit in doomed.items():
                self._restore(name, commit)
            raise
        for name, folders in attempts.items():
            if _short(name) in used:
                if name in doomed:
                    self._restore(name, doomed[name])
                continue
            commit = self._good_commit(name)
            for folder in folders:
                if commit is None or folder != commit.attempt:
                    self.objects.remove_folder(f"{ARTIFACTS}/{name}/{folder}")
            if commit is None:
                self.objects.remove([f"{MEASURED}/{name}.json", f"{ARTIFACTS}/{name}/{COMMIT}"])
                yield f"{ARTIFACTS}/{name}"
        self.objects.remove([name for name in dead if name.startswith(f"{HOLDS}/")])
        for name in unfinished:
            if name not in keep and _short(name) not in used:
                self.objects.remove_folder(f"{WORK}/{name}")
                yield f"{WORK}/{name}"
        remaining = {_short(name) for name in [*self.names(), *self.objects.folders(WORK)]}
        for short in self.objects.folders(LEASES):
            if short not in remaining and short not in used:
                self.objects.remove_folder(f"{LEASES}/{short}")

    def _good_commit(self, name: str) -> Commit | None:
        """Which attempt is a result; None also if that cannot be read."""
        try:
            return self.commit_of(name)
        except DamagedObjectError:
            return None

    def _restore(self, name: str, commit: Commit) -> None:
        """Makes a result one again, unless there is another meanwhile."""
        written = json.dumps(commit.to_json()).encode()
        self.objects.create(f"{ARTIFACTS}/{name}/{COMMIT}", written)


def _short(name: str) -> str:
    """The part of a fingerprint that is in a result's name."""
    return name.rpartition("-")[2]


def fingerprints_in(name: str, content: bytes) -> set[str]:
    """What a hold or a lease is for, as names of results have it."""
    if name.startswith(f"{LEASES}/"):
        return {name.split("/")[1]}
    try:
        return {str(each)[:24] for each in json.loads(content)["fingerprints"]}
    except (ValueError, KeyError, TypeError):
        return set()
