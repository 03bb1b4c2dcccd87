"""The files of a store as all machines of a run reach them: a shared folder, or an object store.

What a step of a Beam job reads and writes is a `SharedPath`: a name in the store, which becomes a
path on the machine where it is used. With a shared folder, and on one machine, it is the same file
for all. Without one, a worker fetches what it reads, and puts what it wrote; no path of one machine
reaches another.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipelines.contracts.base import parsed

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.store.objects import Objects

ARTIFACTS, WORK = "artifacts", "work"
"""The folders of the store with results, and with unfinished work."""
MANIFEST = "manifest.json"
OWN = "own"
"""The folder in a stage's scratch with what each machine makes for itself; it is not sent."""


@cache
def _own_folder() -> Path:
    """A folder of this process alone."""
    folder = Path(tempfile.mkdtemp(prefix="pipelines-worker-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Shared:
    """How the machines of a run share the store. A copy that is sent to a worker is the worker's:
    where no folder is shared, it has one of its own."""

    def __init__(
        self,
        root: Path,
        objects: Objects | None = None,
        attempts: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            root: the store's folder; all machines have it unless `objects` are given.
            objects: the store's objects, if workers share nothing else.
            attempts: where the objects of each result are, see `pipelines.store.remote`.
        """
        self.root, self.objects, self.attempts = root, objects, dict(attempts or {})
        self._digests: dict[str, dict[str, str]] = {}
        self._elsewhere = False
        """Whether this is a worker's, whose folder is its own."""

    def __getstate__(self) -> dict[str, Any]:
        root = str(self.root) if self.objects is None else None
        return {"root": root, "objects": self.objects, "attempts": self.attempts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        root = Path(state["root"]) if state["root"] is not None else _own_folder()
        self.__init__(root, state["objects"], state["attempts"])  # type: ignore[misc]
        self._elsewhere = state["root"] is None

    def path(self, path: Path) -> SharedPath:
        """A file or folder of the store, by its path on the machine of the run."""
        return SharedPath(self, path.relative_to(self.root).as_posix())

    def key(self, name: str) -> str:
        """The object of a file, or the objects' folder of a folder."""
        top, _, rest = name.partition("/")
        artifact, separator, inside = rest.partition("/")
        if top == ARTIFACTS and artifact in self.attempts:
            return f"{top}/{artifact}/{self.attempts[artifact]}{separator}{inside}"
        return name

    def digest(self, name: str) -> str | None:
        """The sha256 of a file of a result, by its manifest; None for other files."""
        top, artifact, *inside = name.split("/")
        if top != ARTIFACTS or artifact not in self.attempts or inside == [MANIFEST]:
            return None
        if artifact not in self._digests:
            manifest = self.fetched(f"{top}/{artifact}/{MANIFEST}")
            files = parsed(manifest)["files"]
            self._digests[artifact] = {file["path"]: file["sha256"] for file in files}
        return self._digests[artifact].get("/".join(inside))

    def local(self, name: str) -> Path:
        """A file's path on this machine, whether it is there or not. Of unfinished work, every
        thread of a worker has its own: it is removed after a piece, and others are at theirs."""
        if self._elsewhere and name.startswith(f"{WORK}/"):
            return self.root / str(threading.get_ident()) / name
        return self.root / name

    def fetched(self, name: str, path: Path | None = None) -> Path:
        """A file's path on this machine, where it is now; its local one if no other is given."""
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise ValueError(f"{name!r} leads out of the store")
        path = path or self.local(name)
        if self.objects is not None and not path.exists():
            self.objects.fetch(self.key(name), path, self.digest(name))
        return path

    def clean(self) -> None:
        """Removes what a worker has fetched and written of unfinished work."""
        if self._elsewhere:
            shutil.rmtree(self.local(f"{WORK}/"), ignore_errors=True)


WHOLE_DISK = Shared(Path("/"))
"""Of a process whose files nobody else needs."""


@dataclass(frozen=True)
class SharedPath(os.PathLike[str]):
    """A file or folder of the store, wherever it is used."""

    shared: Shared
    name: str
    """From the store's folder, with slashes."""

    @classmethod
    def of(cls, path: Path) -> SharedPath:
        """A path of this machine's disk, for what nobody else needs."""
        return WHOLE_DISK.path(path.absolute())

    def __truediv__(self, name: str) -> SharedPath:
        return SharedPath(self.shared, f"{self.name}/{name}")

    @property
    def file(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.name).name

    @property
    def shown(self) -> str:
        """What people are told."""
        objects = self.shared.objects
        return str(self.here) if objects is None else f"{objects.url}/{self.shared.key(self.name)}"

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def here(self) -> Path:
        """Where it is to be written on this machine, or was; nothing is fetched."""
        return self.shared.local(self.name)

    def __fspath__(self) -> str:
        """Where it can be read on this machine."""
        return str(self.shared.fetched(self.name))

    def file_in(self, name: str) -> Path | None:
        """A file in a folder, to be read on this machine; None if there is none."""
        try:
            path = Path(self / name)
        except FileNotFoundError:
            return None
        return path if path.exists() else None

    @property
    def parent(self) -> SharedPath:
        return SharedPath(self.shared, self.name.rpartition("/")[0])

    def names(self) -> list[str]:
        """What files are in a folder, wherever they are; names from there, in order."""
        if self.shared.objects is not None:
            return sorted(self.shared.objects.sizes(self.shared.key(self.name)))
        files = (path for path in self.here.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.here).as_posix() for path in files)

    def whole(self) -> Path:
        """A folder with all that is in it, on this machine."""
        objects = self.shared.objects
        if objects is not None:
            folder = self.here

            def fetched(name: str) -> None:
                self.shared.fetched(f"{self.name}/{name}", folder / name)

            objects.at_once(fetched, self.names())
        return self.here

    def sizes(self) -> Callable[[str], int | None]:
        """What gives the bytes of a file in a folder, by the name of its place; None if it is not
        there."""
        objects = self.shared.objects
        if objects is None:

            def measured(name: str) -> int | None:
                try:
                    return (self.shared.root / name).stat().st_size
                except OSError:
                    return None

            return measured
        listed = objects.sizes(self.shared.key(self.name))
        return lambda name: listed.get(name.removeprefix(f"{self.name}/"))

    def remove(self) -> None:
        """Removes a file, if it is there."""
        self.here.unlink(missing_ok=True)
        if self.shared.objects is not None:
            self.shared.objects.remove([self.shared.key(self.name)])

    def put(self) -> None:
        """Makes a file that was written here one that all machines can read, or all files of a
        folder."""
        objects = self.shared.objects
        if objects is None:
            return
        if self.here.is_dir():
            objects.send_folder(self.here, self.shared.key(self.name))
        else:
            objects.send(self.here, self.shared.key(self.name))

    @contextmanager
    def arrow(self) -> Iterator[pa.NativeFile]:
        """An Arrow file, to read in part."""
        import pyarrow as pa

        objects = self.shared.objects
        if objects is None or self.here.exists():
            with pa.memory_map(str(self.here)) as file:
                yield file
        else:
            with objects.opened(self.shared.key(self.name)) as file:
                yield pa.PythonFile(file, mode="r")
