"""Artifacts on disk: find, verify, lease, publish atomically, collect garbage.

An artifact is the folder `artifacts/<stage>-<fingerprint>` with a `manifest.json`. It is made in
`work/` and renamed into place when it is complete, so an artifact that exists is complete. The
manifest depends only on what was made and from what: no times, no host names, so that two runs that
do the same write the same bytes. The time that it took is stored separately, in `measured/`.

Every file's digest is in the manifest, and the manifest's own beside it. They are checked before a
run uses an artifact; a file that has not changed since it was checked is not read again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.contracts.base import (
    Contract,
    LaterVersionError,
    Properties,
    parsed,
    read,
    read_list,
    refuse_later,
)
from pipelines.contracts.reports import CURVE, SENTENCES, Point, Sentences
from pipelines.contracts.runs import Parts
from pipelines.contracts.scores import SCORES, Score
from pipelines.contracts.tasks import Task
from pipelines.store.digests import canonical, file_digest
from pipelines.store.files import sync, write_json
from pipelines.store.leases import Lease, LeaseLostError, LockHeldError, lock
from pipelines.store.objects import DamagedObjectError, Objects, ObjectStoreError
from pipelines.store.remembered import Memory
from pipelines.store.remote import KEPT, MEASURED, Commit, RemoteArtifacts
from pipelines.store.shared import ARTIFACTS, MANIFEST, OWN, WORK

DAY = 24 * 3600.0
FETCHED = ".fetched-"
"""How the names of folders begin that are being fetched."""
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
    seal: str = ""
    """sha256 over everything else in the manifest. Manifests of 0.1.0 have none."""


@dataclass(frozen=True)
class Artifact:
    """A published folder and what its manifest says."""

    path: Path
    """Its folder on this machine, which may not have its files yet."""
    manifest: Manifest
    sealed: bool = True
    """Whether the manifest is as it was written."""
    attempt: str = ""
    """Where its objects are, if the store is an object store."""
    fetch: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    """Gets its files from there."""

    @cached_property
    def folder(self) -> Path:
        """Its folder on this machine, with its files."""
        if self.fetch is not None:
            self.fetch()
        return self.path

    @property
    def name(self) -> str:
        return self.path.name

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
            for point in parsed(path)
        )

    def sentences(self) -> Sentences | None:
        """What a report keeps for the comparison of runs; None if it keeps nothing."""
        path = self.folder / SENTENCES
        return read(path, Sentences) if path.exists() else None

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))


class Store:
    """All artifacts under one folder. Several processes can use it at the same time."""

    def __init__(self, root: Path, objects: Objects | None = None) -> None:
        """
        Args:
            root: the folder on this machine.
            objects: the same store as objects, of which the folder then has copies.
        """
        self.root, self.objects = root, objects
        self.memory = Memory(root)
        self.remote = None if objects is None else RemoteArtifacts(objects)
        self._held = ExitStack()
        self._leases: dict[str, Lease] = {}
        """Those that this process has, by fingerprint."""
        self._kept: dict[str, int] = {}
        """Which files of scratch have been sent, with their times."""

    def path(self, stage: str, fingerprint: str) -> Path:
        name = f"{stage}-{fingerprint[:24]}"
        if "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of a result")  # from a foreign record
        return self.root / ARTIFACTS / name

    def read(self, folder: Path) -> Artifact | None:
        """What is in a folder of an artifact, or None if there is no complete one there. Raises as
        `read_artifact`."""
        if self.remote is None:
            return read_artifact(folder)
        try:
            commit = self.remote.commit_of(folder.name)
        except DamagedObjectError:
            return None
        if commit is None:
            return None
        copy = read_artifact(folder)
        if copy is not None and copy.manifest.seal == commit.seal and not any(self._wrong(copy)):
            return replace(copy, attempt=commit.attempt)
        try:
            written = self.remote.objects.get_json(
                f"{ARTIFACTS}/{folder.name}/{commit.attempt}/{MANIFEST}"
            )
        except DamagedObjectError:
            return None
        artifact = _artifact(
            folder, f"{self.remote.objects.url}/{ARTIFACTS}/{folder.name}", written
        )
        if artifact is None:
            return None
        return replace(
            artifact, attempt=commit.attempt, fetch=partial(self._fetch, artifact, commit)
        )

    def _fetch(self, artifact: Artifact, commit: Commit) -> None:
        """Puts a copy of an artifact's files into its folder."""
        assert self.remote is not None
        target = artifact.path
        with lock(self.root / "leases" / f"{target.name}.fetch", wait=lambda: None):
            there = read_artifact(target)
            if there and there.manifest.seal == commit.seal and not any(self._wrong(there)):
                return  # another process of this machine was faster
            copy = self.root / f"{FETCHED}{secrets.token_hex(8)}"
            try:
                digests = {file.path: file.sha256 for file in artifact.manifest.files}
                self.remote.fetch(artifact.name, commit, digests, copy)
                self._replace(copy, target)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        self._remember(target, artifact.manifest)

    def _replace(self, copy: Path, target: Path) -> None:
        """Gives a folder the name of another, which goes away."""
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = copy.with_name(f"{copy.name}-replaced")
        with suppress(FileNotFoundError):
            target.rename(aside)
        copy.rename(target)
        shutil.rmtree(aside, ignore_errors=True)

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact of a fingerprint, or None. One that is not whole is not found."""
        artifact = self.read(self.path(stage, fingerprint))
        if artifact is None or artifact.fingerprint != fingerprint:
            return None
        return None if any(self.problems(artifact)) else artifact

    def damage(self, stage: str, fingerprint: str) -> str | None:
        """Why there is a folder for a fingerprint but `find` does not find it; None if there is
        no folder."""
        folder = self.path(stage, fingerprint)
        if self.remote is not None:
            try:
                if self.remote.commit_of(folder.name) is None:
                    return None
            except DamagedObjectError as error:
                return str(error)
        else:
            with suppress(OSError):
                if not folder.is_dir():
                    return None
        artifact = self.read(folder)
        if artifact is None:
            return f"{MANIFEST} is missing or damaged"
        if artifact.fingerprint != fingerprint:
            return f"{MANIFEST} belongs to another result"
        return next(self.problems(artifact), None)

    def problems(self, artifact: Artifact, again: bool = False) -> Iterator[str]:
        """What is not as it was stored, a sentence for each file.

        Args:
            again: read every file, also those that have not changed since they were checked.
        """
        if self.remote is not None and artifact.attempt:
            sizes = {file.path: file.size for file in artifact.manifest.files}
            problem = self.remote.problem(artifact.name, artifact.attempt, sizes)
            if problem:
                yield problem
                return
            if again:
                with tempfile.TemporaryDirectory() as folder:
                    digests = {file.path: file.sha256 for file in artifact.manifest.files}
                    commit = Commit(attempt=artifact.attempt, seal=artifact.manifest.seal)
                    try:
                        self.remote.fetch(artifact.name, commit, digests, Path(folder))
                    except DamagedObjectError as error:
                        yield str(error)
                return
        yield from self._wrong(artifact, again)

    def _wrong(self, artifact: Artifact, again: bool = False) -> Iterator[str]:
        """What is not as it was stored on this machine."""
        folder, manifest = artifact.path, artifact.manifest
        if not artifact.sealed:
            yield f"{MANIFEST} is not as it was stored"
        if folder.name != f"{manifest.stage}-{manifest.fingerprint[:24]}":
            yield f"{MANIFEST} belongs to another result"
        if artifact.fetch is not None:
            return  # its files are compared when they are fetched
        listed = {file.path for file in manifest.files}
        folders = {parent.as_posix() for path in listed for parent in PurePosixPath(path).parents}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            expected = folders if stat.S_ISDIR(mode) else {MANIFEST} if stat.S_ISREG(mode) else ()
            if name not in listed and name not in expected:
                yield f"{name} was not there when it was stored"
        for file in manifest.files:
            path = folder / file.path
            try:
                if path.is_symlink() or not path.is_file():
                    yield f"{file.path} is missing"
                    continue
                if path.stat().st_size != file.size:
                    yield f"{file.path} has {path.stat().st_size} bytes, not {file.size}"
                    continue
                key = self._key(folder, file)
                changed = self.memory.digest(str(path), key, again) != file.sha256
            except OSError as error:
                yield f"{file.path} cannot be read: {error.strerror}"
                continue
            if changed:
                yield f"{file.path} is not as it was stored: its sha256 is another"

    def _key(self, folder: Path, file: StoredFile) -> str:
        """What the memory calls a file: the same wherever the store is."""
        return f"store:{folder.name}/{file.path}"

    def hold(self, fingerprint: str) -> None:
        """From now until `release`, `collect` does not remove the artifact of a fingerprint."""
        use = self.root / "leases" / f"{fingerprint[:24]}.use"
        self._held.enter_context(lock(use, wait=lambda: None, shared=True))
        if self.remote is not None:
            self.remote.hold(fingerprint)

    def release(self) -> None:
        """Ends all holds of this process."""
        self._held.close()
        if self.remote is not None:
            with suppress(ObjectStoreError):  # then they end by themselves
                self.remote.release()

    def check(self) -> None:
        """Raises `LeaseLostError` if what this process holds may have been removed."""
        if self.remote is not None:
            self.remote.check()

    @contextmanager
    def lease(self, fingerprint: str, wait: Callable[[], None]) -> Iterator[None]:
        """The exclusive right to make an artifact; waits while another run is making it."""
        with lock(self.root / "leases" / fingerprint[:24], wait):
            if self.remote is None:
                yield
                return
            with self.remote.lease(fingerprint[:24], wait) as taken:
                self._leases[fingerprint] = taken
                try:
                    yield
                finally:
                    del self._leases[fingerprint]

    def workspace(self, stage: str, fingerprint: str) -> Path:
        """Where an artifact is made: `output/`, and `scratch/`, which remains after a kill."""
        folder = self.root / WORK / f"{stage}-{fingerprint[:24]}"
        if self.objects is not None and not folder.exists():
            copy = self.root / f"{FETCHED}{secrets.token_hex(8)}"
            try:
                (copy / "scratch").mkdir(parents=True)
                self.objects.fetch_folder(f"{WORK}/{folder.name}/{KEPT}", copy / "scratch")
                folder.parent.mkdir(exist_ok=True)
                copy.rename(folder)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        (folder / "output").mkdir(exist_ok=True)
        return folder

    def keep(self, stage: str, fingerprint: str) -> None:
        """Makes what is in `scratch/` now what another machine finds there, if the store is an
        object store. Files are sent in the order in which they were written."""
        if self.objects is None:
            return
        if fingerprint in self._leases:
            self._leases[fingerprint].check()  # another may be at it, from what was kept before
        scratch = self.root / WORK / f"{stage}-{fingerprint[:24]}" / "scratch"
        kept = f"{WORK}/{stage}-{fingerprint[:24]}/{KEPT}"
        own = scratch / OWN
        files = [
            path for path in scratch.rglob("*") if path.is_file() and not path.is_relative_to(own)
        ]
        there = self.objects.sizes(kept)
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
            name, written = path.relative_to(scratch).as_posix(), path.stat().st_mtime_ns
            if self._kept.get(str(path)) != written or name not in there:
                self.objects.send(path, f"{kept}/{name}")
                self._kept[str(path)] = written
        names = {path.relative_to(scratch).as_posix() for path in files}
        self.objects.remove([f"{kept}/{name}" for name in there if name not in names])

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
        replacing: bool = False,
    ) -> Artifact:
        """Seals the workspace's `output/` with a manifest and renames it into place.

        Args:
            replacing: whether it counts instead of an artifact that has been published meanwhile;
                without an object store, it always does.
        """
        workspace = self.workspace(stage, fingerprint)
        output = workspace / "output"
        (output / MANIFEST).unlink(missing_ok=True)
        everything = sorted(output.rglob("*"))
        files = [_stored(output, path) for path in everything if path.is_file()]
        for path in reversed(everything):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()  # A manifest lists files: nobody would know that this belongs there.
        manifest = Manifest(
            format=FORMAT,
            kind=kind,
            rows=rows,
            rejected=dict(rejected),
            properties=dict(properties),
            files=tuple(files),
            stage=stage,
            digest="",
            fingerprint=fingerprint,
            parts=parts,
            versions=dict(versions),
        )
        manifest = manifest.model_copy(update={"digest": _content_digest(manifest)})
        manifest = manifest.model_copy(update={"seal": _seal(manifest.to_json())})
        write_json(output / MANIFEST, manifest.to_json())
        target = self.path(stage, fingerprint)
        rounded = {name: float(f"{value:.4g}") for name, value in measured.items()}
        commit = None
        if self.remote is not None:
            replacing = replacing or self.damage(stage, fingerprint) is not None
            self.check()
            lease = self._leases.get(fingerprint)
            commit = self.remote.publish(target.name, output, manifest.seal, lease, replacing)
            if commit.seal != manifest.seal:
                theirs = self.find(stage, fingerprint)
                if theirs is None:
                    raise FileNotFoundError(f"{target.name} was made by another run, and is gone")
                self.discard(stage, fingerprint)
                return theirs
            text = json.dumps(rounded, indent=2, sort_keys=True)
            self.remote.objects.put(f"{MEASURED}/{target.name}.json", text.encode())
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            aside = workspace / "replaced"
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        output.rename(target)
        sync(target.parent)
        self._remember(target, manifest)
        folder = self.root / MEASURED
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{target.name}.json", rounded)
        shutil.rmtree(workspace)
        if self.objects is not None:
            with suppress(LeaseLostError):
                if fingerprint in self._leases:
                    self._leases[fingerprint].check()
                self.objects.remove_folder(f"{WORK}/{workspace.name}")
        return Artifact(target, manifest, attempt=commit.attempt if commit else "")

    def _remember(self, folder: Path, manifest: Manifest) -> None:
        """Remembers the digests of files that were read a moment ago; nobody writes to them."""
        for file in manifest.files:
            self.memory.remember(str(folder / file.path), file.sha256, self._key(folder, file))

    def measured(self, artifact: Artifact) -> dict[str, float]:
        """Measured values by name, if they are known: `seconds` for making the artifact, and what
        its stage measured in addition. They are for people: if they are lost, nothing else is."""
        try:
            values = parsed(self.root / MEASURED / f"{artifact.name}.json")
        except (OSError, ValueError):
            values = None
            if self.objects is not None:
                with suppress(OSError):
                    values = self.objects.get_json(f"{MEASURED}/{artifact.name}.json")
        if not isinstance(values, dict):
            return {}
        return {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def discard(self, stage: str, fingerprint: str) -> None:
        """Forgets unfinished work, so that the stage starts over."""
        shutil.rmtree(self.root / WORK / f"{stage}-{fingerprint[:24]}", ignore_errors=True)
        if self.objects is not None:
            self.objects.remove_folder(f"{WORK}/{stage}-{fingerprint[:24]}")

    def artifacts(self) -> list[Path]:
        """The folders of all artifacts, whether this machine has them or an object store does."""
        if self.remote is not None:
            return [self.root / ARTIFACTS / name for name in self.remote.names()]
        return self._folders()

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.root.glob(f"{ARTIFACTS}/*") if path.is_dir())

    def unfinished(self) -> list[str]:
        """The names of unfinished work."""
        if self.objects is not None:
            return self.objects.folders(WORK)
        return sorted(path.name for path in self.root.glob(f"{WORK}/*"))

    def collect(self, keep: Collection[str]) -> list[str]:
        """Removes artifacts and unfinished work whose folder name is not in `keep`, with their
        leases. Keeps what a running process makes or uses."""
        if self.remote is not None:
            return [*self.remote.collect(keep), *self._collect(keep)]
        return self._collect(keep)

    def _collect(self, keep: Collection[str]) -> list[str]:
        for folder in self.root.glob(".removed-*"):
            shutil.rmtree(folder, ignore_errors=True)  # A collection was killed in the middle.
        for folder in self.root.glob(f"{FETCHED}*"):
            if time.time() - folder.stat().st_mtime > DAY:  # And this is of a killed run.
                shutil.rmtree(folder, ignore_errors=True)
        removed = []
        for folder in [*self._folders(), *sorted(self.root.glob(f"{WORK}/*"))]:
            if folder.name in keep or not folder.is_dir():
                continue
            with suppress(LockHeldError), self._alone(folder.name.rpartition("-")[2]):
                # Renamed first: a half-deleted artifact must not be found.
                doomed = self.root / f".removed-{folder.name}"
                folder.rename(doomed)
                shutil.rmtree(doomed)
                (self.root / MEASURED / f"{folder.name}.json").unlink(missing_ok=True)
                removed.append(str(folder))
        remaining = {path.name.rpartition("-")[2] for path in self.root.glob("*/*-*")}
        for path in sorted(self.root.glob("leases/*")):
            short = path.name.removesuffix(".use")
            if short not in remaining and path.is_file():
                with suppress(LockHeldError), self._alone(short):
                    pass
        for path in self.root.glob("measured/.*.tmp"):
            path.unlink(missing_ok=True)
        self.memory.prune()
        return removed

    @contextmanager
    def _alone(self, short: str) -> Iterator[None]:
        """Excludes those who make or use an artifact, and then removes the locks for it. Raises
        `LockHeldError`."""
        lease, use = self.root / "leases" / short, self.root / "leases" / f"{short}.use"
        with lock(lease), lock(use):
            yield
            lease.unlink()
            use.unlink()


def read_artifact(folder: Path) -> Artifact | None:
    """The artifact in a folder, or None if there is no complete one.

    Raises `LaterVersionError` if a later version wrote it, because it could be misread.
    """
    try:
        written = parsed(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    return _artifact(folder, str(folder / MANIFEST), written)


def _artifact(folder: Path, shown: str, written: Any) -> Artifact | None:
    """What a manifest says; None if it says nothing. Raises `LaterVersionError`."""
    if not isinstance(written, dict):
        return None
    try:
        refuse_later(Path(shown), written, FORMAT)
        manifest = Manifest.model_validate(written)
    except LaterVersionError:
        raise
    except ValueError:  # pydantic's errors are ValueErrors too
        return None
    inside = all(_is_inside(file.path) for file in manifest.files)
    return Artifact(folder, manifest, _is_sealed(manifest, written)) if inside else None


def _is_inside(path: str) -> bool:
    """Whether a path stays in the folder that it starts from."""
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts


def _content_digest(manifest: Manifest) -> str:
    content = {"kind", "rows", "rejected", "properties", "files"}
    return hashlib.sha256(canonical(manifest.model_dump(mode="json", include=content))).hexdigest()


def _seal(written: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in written.items() if name != "seal"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def _is_sealed(manifest: Manifest, written: Mapping[str, Any]) -> bool:
    """Whether a manifest is as it was written. Those of 0.1.0 have neither format nor seal; their
    digest is still that of their content."""
    if "seal" in written or "format" in written:
        return manifest.seal == _seal(written)
    return manifest.digest == _content_digest(manifest)


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


def _stored(root: Path, path: Path) -> StoredFile:
    sync(path)
    return StoredFile(
        path=path.relative_to(root).as_posix(),
        size=path.stat().st_size,
        sha256=file_digest(path),
    )
