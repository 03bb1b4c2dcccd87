"""Artifacts on disk: find, lease, publish atomically, collect garbage.

An artifact is the folder `artifacts/<stage>-<fingerprint>` with a `manifest.json`. It is made in
`work/` and renamed into place when it is complete, so an artifact that exists is complete. The
manifest depends only on what was made and from what: no times, no host names, so that two runs that
do the same write the same bytes. The time that it took is stored separately, in `measured/`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from pipelines.contracts.base import Contract, Properties, read, read_list, refuse_later
from pipelines.contracts.reports import CURVE, SENTENCES, Point, Sentences
from pipelines.contracts.runs import Parts
from pipelines.contracts.scores import SCORES, Score
from pipelines.contracts.tasks import Task
from pipelines.store.digests import canonical, file_digest
from pipelines.store.files import write_json

MANIFEST = "manifest.json"
FORMAT = 1
"""The version of the manifest's format."""


class StoredFile(Contract):
    """A file of an artifact."""

    path: str
    """From the artifact's folder, with slashes."""
    size: int
    """Bytes."""
    sha256: str


class Manifest(Contract):
    """What an artifact is and what it was made from: `manifest.json`."""

    format: int = 1
    """Manifests of 0.1.0 do not have it; their format is 1."""
    kind: str
    rows: int
    rejected: dict[str, int]
    """Rows kept aside, by reason."""
    properties: Properties
    """Facts for the stages downstream; each kind of artifact has its own."""
    files: tuple[StoredFile, ...]
    stage: str
    digest: str
    """sha256 over the content alone: kind, rows, rejected, properties and files."""
    fingerprint: str
    parts: Parts
    """What the fingerprint was computed from."""
    versions: dict[str, str]
    """Of the stage's libraries and of Python."""


@dataclass(frozen=True)
class Artifact:
    """A published folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def properties(self) -> Properties:
        return self.manifest.properties

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def rejected(self) -> dict[str, int]:
        return self.manifest.rejected

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """What records, features and predictions say of their tasks."""
        tasks = self.properties.get("tasks", {})
        return {name: Task.model_validate(task) for name, task in tasks.items()}

    def scores(self) -> list[Score]:
        """The scores of an artifact of the kind `scores`; other kinds have none."""
        if self.kind != "scores":
            return []
        return read_list(self.folder / SCORES, Score)

    def curve(self) -> tuple[Point, ...]:
        """The learning curve of a model; empty if it was not trained here. What a training stage
        of the user's own writes beside numbers is left out."""
        path = self.folder / CURVE
        if not path.exists():
            return ()
        return tuple(
            {name: value for name, value in point.items() if isinstance(value, int | float)}
            for point in json.loads(path.read_text(encoding="utf-8"))
        )

    def sentences(self) -> Sentences | None:
        """What a report keeps for the comparison of runs; None if it keeps nothing."""
        path = self.folder / SENTENCES
        return read(path, Sentences) if path.exists() else None

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))


class LockHeldError(Exception):
    """Another process holds a lock, and the caller did not want to wait for it."""


@contextmanager
def lock(path: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an advisory lock; the kernel releases it when the process ends, however it ends.

    Args:
        wait: called about once a second while another process holds the lock; if it is None,
            `LockHeldError` is raised at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    raise LockHeldError(str(path)) from None
                wait()
                time.sleep(1.0)
        yield


class Store:
    """All artifacts under one folder. Several processes can use it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, stage: str, fingerprint: str) -> Path:
        return self.root / "artifacts" / f"{stage}-{fingerprint[:24]}"

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact of a fingerprint, or None. One with missing or cut files is not found."""
        artifact = read_artifact(self.path(stage, fingerprint))
        if artifact is None or artifact.fingerprint != fingerprint:
            return None
        for file in artifact.manifest.files:
            try:
                whole = (artifact.folder / file.path).stat().st_size == file.size
            except OSError:
                whole = False
            if not whole:
                return None
        return artifact

    @contextmanager
    def lease(self, fingerprint: str, wait: Callable[[], None]) -> Iterator[None]:
        """The exclusive right to make an artifact; waits while another run is making it."""
        with lock(self.root / "leases" / fingerprint[:24], wait):
            yield

    def workspace(self, stage: str, fingerprint: str) -> Path:
        """Where an artifact is made: `output/`, and `scratch/`, which remains after a kill."""
        folder = self.root / "work" / f"{stage}-{fingerprint[:24]}"
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        (folder / "output").mkdir(exist_ok=True)
        return folder

    def publish(
        self,
        stage: str,
        fingerprint: str,
        *,
        kind: str,
        parts: Parts,
        rows: int,
        rejected: Mapping[str, int],
        properties: Properties,
        versions: Mapping[str, str],
        measured: Mapping[str, float],
    ) -> Artifact:
        """Seals the workspace's `output/` with a manifest and renames it into place."""
        workspace = self.workspace(stage, fingerprint)
        output = workspace / "output"
        (output / MANIFEST).unlink(missing_ok=True)
        files = [_sealed(output, path) for path in sorted(output.rglob("*")) if path.is_file()]
        content = {
            "kind": kind,
            "rows": rows,
            "rejected": dict(rejected),
            "properties": dict(properties),
            "files": [file.to_json() for file in files],
        }
        manifest = Manifest(
            format=FORMAT,
            kind=kind,
            rows=rows,
            rejected=dict(rejected),
            properties=dict(properties),
            files=tuple(files),
            stage=stage,
            digest=hashlib.sha256(canonical(content)).hexdigest(),
            fingerprint=fingerprint,
            parts=parts,
            versions=dict(versions),
        )
        write_json(output / MANIFEST, manifest.to_json())
        _sync(output / MANIFEST)
        target = self.path(stage, fingerprint)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            aside = workspace / "replaced"
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        output.rename(target)
        _sync(target.parent)
        folder = self.root / "measured"
        folder.mkdir(exist_ok=True)
        rounded = {name: float(f"{value:.4g}") for name, value in measured.items()}
        write_json(folder / f"{target.name}.json", rounded)
        shutil.rmtree(workspace)
        return Artifact(target, manifest)

    def measured(self, artifact: Artifact) -> dict[str, float]:
        """Measured values by name, if they are known: `seconds` for making the artifact, and what
        its stage measured in addition."""
        try:
            text = (self.root / "measured" / f"{artifact.folder.name}.json").read_text()
        except OSError:
            return {}
        values: dict[str, float] = json.loads(text)
        return values

    def discard(self, stage: str, fingerprint: str) -> None:
        """Forgets unfinished work, so that the stage starts over."""
        shutil.rmtree(self.root / "work" / f"{stage}-{fingerprint[:24]}", ignore_errors=True)

    def collect(self, keep: Sequence[Path]) -> list[Path]:
        """Removes artifacts and unfinished work whose folder name is not among those of `keep`.

        Keeps what a running process is making or has a lease on.
        """
        names = {path.name for path in keep}
        removed = []
        for folder in sorted([*self.root.glob("artifacts/*"), *self.root.glob("work/*")]):
            if folder.name in names:
                continue
            lease = self.root / "leases" / folder.name.rpartition("-")[2]
            try:
                with lock(lease):
                    # Renamed first: a half-deleted artifact must not be found.
                    doomed = self.root / f".removed-{folder.name}"
                    folder.rename(doomed)
                    shutil.rmtree(doomed)
            except LockHeldError:
                continue
            (self.root / "measured" / f"{folder.name}.json").unlink(missing_ok=True)
            removed.append(folder)
        return removed


def read_artifact(folder: Path) -> Artifact | None:
    """The artifact in a folder, or None if there is no complete one.

    Raises `ValueError` if a later version wrote it, because it could be misread.
    """
    try:
        written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    refuse_later(folder / MANIFEST, written, FORMAT)
    try:
        return Artifact(folder, Manifest.model_validate(written))
    except ValidationError:
        return None


def loose_artifact(
    folder: Path, rows: int = 0, properties: Properties | None = None, digest: str = "0" * 64
) -> Artifact:
    """Treats a folder as an artifact that no run made: to run a stage by hand, in tests and in
    benchmarks."""
    manifest = Manifest(
        kind="",
        rows=rows,
        rejected={},
        properties=properties or {},
        files=(),
        stage="",
        digest=digest,
        fingerprint="",
        parts={},
        versions={},
    )
    return Artifact(folder, manifest)


def _sealed(root: Path, path: Path) -> StoredFile:
    _sync(path)
    return StoredFile(
        path=path.relative_to(root).as_posix(),
        size=path.stat().st_size,
        sha256=file_digest(path),
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
