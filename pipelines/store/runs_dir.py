"""The folder of all runs and their results: on this machine, or an object store with a copy here.

An object store has the same names as a folder, but for `latest`: where a folder has a link, it has
the objects `PIPELINE/latest/RUN`, of which the last by name counts. They are created and never
changed, so a run that comes late cannot undo what a newer one said.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.contracts.runs import RUN, RunRecord
from pipelines.store import leases
from pipelines.store.artifacts import Store
from pipelines.store.leases import Lease, lock
from pipelines.store.objects import Objects

EVENTS = "events.jsonl"
LATEST, LEASE, LOCK, ROOM, SITE, STORE = "latest", ".lease", ".lock", ".room", "site", "store"
CACHE = "PIPELINES_CACHE"
"""The environment's name for the folder of copies."""


def cache_folder() -> Path:
    """Where copies of what is in object stores are kept; it can be removed when nothing runs."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemini-pipelines"


class RunsDir:
    """Where runs and their results are."""

    def __init__(self, folder: Path, objects: Objects | None = None) -> None:
        self.folder, self.objects = folder, objects

    @classmethod
    def of(cls, text: str) -> RunsDir:
        """A path, or the URL of an object store."""
        if "://" not in text:
            return cls(Path(text))
        objects = Objects(text)
        name = hashlib.sha256(objects.url.encode()).hexdigest()[:16]
        return cls(cache_folder() / name, objects)

    def __str__(self) -> str:
        return str(self.folder) if self.objects is None else self.objects.url

    def store(self) -> Store:
        """The results. Its path is absolute, because workers may stand somewhere else."""
        objects = None if self.objects is None else Objects(f"{self.objects.url}/{STORE}")
        return Store((self.folder / STORE).absolute(), objects)

    def exists(self) -> bool:
        """Whether there is anything."""
        if self.objects is None:
            return self.folder.is_dir()
        return bool(self.objects.folders(""))

    @contextmanager
    def lock(self, pipeline: str, wait: Callable[[], None] | None) -> Iterator[Lease | None]:
        """The right to be the only run of a pipeline; see `pipelines.store.leases`."""
        with lock(self.folder / pipeline / LOCK, wait):
            if self.objects is None:
                yield None
            else:
                with leases.lease(self.objects, f"{pipeline}/{LEASE}", wait) as taken:
                    self.objects.check_conditions(taken.beating.name)
                    yield taken

    def pipelines(self) -> list[str]:
        """The names of all pipelines, in order."""
        if self.objects is not None:
            return [name for name in self.objects.folders("") if name not in (SITE, STORE)]
        return sorted({path.parent.parent.name for path in self.folder.glob(f"*/*/{RUN}")})

    def pull(self, pipeline: str, whole: bool = False) -> None:
        """Brings the records of a pipeline's runs here, and what `latest` is; runs that were
        removed go here too.

        Args:
            whole: also their reports.
        """
        if self.objects is None:
            return
        objects, home = self.objects, self.folder / pipeline

        def fetched(run: str) -> None:
            with suppress(FileNotFoundError):  # a run that has just begun
                if whole:
                    objects.fetch_folder(f"{pipeline}/{run}", home / run)
                objects.fetch(f"{pipeline}/{run}/{RUN}", home / run / RUN)

        runs = [name for name in objects.folders(pipeline) if name not in (LATEST, LEASE)]
        objects.at_once(fetched, [run for run in runs if whole or not _has_ended(home / run)])
        for run in home.glob(f"*/{RUN}"):
            # A run's record is there from its beginning, so this one has been removed elsewhere.
            if run.parent.name not in {*runs, LATEST} and _has_ended(run.parent):
                shutil.rmtree(run.parent, ignore_errors=True)
        latest = max(objects.sizes(f"{pipeline}/{LATEST}"), default=None)
        if latest is not None:
            point(home, latest)

    def save(self, folder: Path) -> None:
        """Sends the record of a run."""
        if self.objects is not None:
            self.objects.send(folder / RUN, f"{folder.parent.name}/{folder.name}/{RUN}")

    def push(self, folder: Path, whole: bool = True) -> None:
        """Sends the files of a run, its record last.

        Args:
            whole: all of them, or only what is still written after the reports.
        """
        if self.objects is not None:
            name = f"{folder.parent.name}/{folder.name}"
            if whole:
                self.objects.send_folder(folder, name, without=(RUN, ROOM))
            else:
                self.objects.send(folder / EVENTS, f"{name}/{EVENTS}")
            self.save(folder)

    def point_latest(self, folder: Path) -> None:
        """Makes a run the last good one. Raises `ValueError` if `latest` cannot be replaced."""
        home, run = folder.parent, folder.name
        if self.objects is not None:
            self.objects.create(f"{home.name}/{LATEST}/{run}", run.encode())
            older = [name for name in self.objects.sizes(f"{home.name}/{LATEST}") if name < run]
            self.objects.remove([f"{home.name}/{LATEST}/{name}" for name in older])
        point(home, run)

    def push_site(self, site: Path) -> None:
        """Sends the site of all runs."""
        if self.objects is not None:
            self.objects.send_folder(site, SITE)

    def remove_run(self, folder: Path) -> None:
        """Removes the objects of a run, its record first."""
        if self.objects is not None:
            name = f"{folder.parent.name}/{folder.name}"
            self.objects.remove([f"{name}/{RUN}"])
            self.objects.remove_folder(name)


def _has_ended(folder: Path) -> bool:
    try:
        return RunRecord.read(folder).status != "running"
    except (OSError, ValueError):
        return False


def point(home: Path, run: str) -> None:
    """Makes `latest` a link to a run. Raises `ValueError` if it is there and no link."""
    temporary = home / f".latest-{run}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run)
        temporary.replace(home / LATEST)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(
            f"{home / LATEST} cannot be pointed to this run: {error.strerror}; it must be a link, "
            "or not be there"
        ) from error


def run_folder(text: str) -> Path:
    """The folder of a run, or of all runs of a pipeline, on this machine.

    Args:
        text: its path, or a URL in an object store, which is fetched.
    """
    if "://" not in text:
        return Path(text)
    url, _, name = text.rstrip("/").rpartition("/")
    try:
        for _ in range(2):
            runs = RunsDir.of(url)
            if runs.objects is not None and STORE in runs.objects.folders(""):
                runs.pull(name.partition("/")[0], whole=True)
                return runs.folder / name
            url, _, pipeline = url.rpartition("/")
            name = f"{pipeline}/{name}"
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(str(error)) from error
    raise ArgumentTypeError(f"{text} is neither a run nor a pipeline in an object store")
