"""An object store as the place of runs: whole objects by name below a URL of fsspec.

An object is there completely or not at all, can be read as soon as it is written, and can be
created on the condition that there is none: S3 (If-None-Match), Google Cloud Storage and Azure can
do this. Nothing else is asked of a store, so that what is built on it holds everywhere.

What may pass by itself (a connection that breaks, a busy server) is tried again, for `PATIENCE`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import secrets
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    wait_random_exponential,
)

from pipelines.store.files import sync
from pipelines.store.sources import SourceError, filesystem_of

PATIENCE, LESS_PATIENCE = 120.0, 10.0
"""Seconds for which something is tried again; and if what was tried before had no success."""
LONGEST_WAIT = 10.0
"""Seconds between two tries."""
BLOCK = 1 << 20
"""Bytes that are read at a time of an object that is read in part."""
WHOLE = 4 << 20
"""Bytes; smaller objects are read whole."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "s3": {
        "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
    }
}
"""Of the file systems that need some; the user's own are those of fsspec's configuration and of the
environment, such as AWS_ENDPOINT_URL."""
LASTING = {errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENAMETOOLONG, errno.ENOSPC}
"""What a store says for good, or this machine's disk does."""

TRIES = 3
"""To create what was there and is not there any more."""
AT_ONCE = 8
"""Objects that are read or written at a time: each waits mostly for the network."""

T = TypeVar("T")


class ObjectStoreError(OSError):
    """The store cannot be reached, or refuses."""


class ObjectStoreUnreachableError(ObjectStoreError):
    """The store could not be reached for as long as it was tried; it may be later."""


class DamagedObjectError(ObjectStoreError):
    """An object is not what it should be."""


def stays_inside(name: str) -> bool:
    """Whether a name stays in the folder that it starts from, on any disk."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, Exception):
        return False
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | DamagedObjectError
    ):
        return False
    if isinstance(error, ValueError | TypeError | ImportError | SourceError):
        return False
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return False
    return not (isinstance(error, OSError) and error.errno in LASTING)


class ObjectReader(io.RawIOBase):
    """An object as a file; every read is tried again as all else is."""

    def __init__(self, objects: Objects, name: str, size: int) -> None:
        super().__init__()
        self.objects, self.name, self.size, self.place = objects, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = max(0, offset + (0, self.place, self.size)[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        end = min(self.size, self.place + len(buffer))
        if end <= self.place:
            return 0
        data = self.objects.get_range(self.name, self.place, end)
        buffer[: len(data)] = data
        self.place = end
        return len(data)


class Objects:
    """The objects below a URL. Can be sent to other machines."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._reached = True
        """Whether the last try had an answer."""

    def __reduce__(self) -> tuple[type[Objects], tuple[str]]:
        return Objects, (self.url,)

    def hurry(self) -> None:
        """Until something has succeeded, nothing is tried for longer than `LESS_PATIENCE`."""
        self._reached = False

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        protocol = self.url.partition("://")[0]
        # What others write is looked for, not what was there a minute ago.
        return filesystem_of(self.url, use_listings_cache=False, **OPTIONS.get(protocol, {}))

    def _do(self, name: str, act: Callable[[Any, str], T]) -> T:
        """Calls `act` with the file system and the path of an object, again and again if need be.

        Raises `FileNotFoundError`, `FileExistsError` and `ObjectStoreError`.
        """
        try:
            filesystem, root = self._opened
            path = f"{root}/{name}" if name else root
            for attempt in Retrying(
                # What takes long by itself is not given up because it failed once.
                stop=stop_all(
                    stop_after_delay(PATIENCE if self._reached else LESS_PATIENCE),
                    stop_after_attempt(3),
                ),
                wait=wait_random_exponential(0.2, max=LONGEST_WAIT),
                retry=retry_if_exception(_may_pass),
                reraise=True,
            ):
                with attempt:
                    result = act(filesystem, path)
                    self._reached = True
                    return result
        except (FileNotFoundError, FileExistsError, DamagedObjectError):
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:  # of this machine's disk
                raise
            raise self._told(name, error) from error
        except Exception as error:  # each file system has errors of its own
            raise self._told(name, error) from error
        raise AssertionError

    def _told(self, name: str, error: Exception) -> ObjectStoreError:
        where = f"{self.url}/{name}".rstrip("/")
        what = f"{type(error).__name__}: {error}"
        if _may_pass(error):
            self._reached = False
            return ObjectStoreUnreachableError(f"{where} cannot be reached: {what}")
        return ObjectStoreError(f"{where}: {what}")

    @staticmethod
    def at_once(act: Callable[[T], object], items: Collection[T]) -> None:
        """Does something with every item, some at a time; raises the first error."""
        if len(items) < 2:
            for item in items:
                act(item)
            return
        with ThreadPoolExecutor(AT_ONCE) as threads:
            futures = [threads.submit(act, item) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # a stop too
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def get(self, name: str) -> bytes:
        """The content of an object. Raises `FileNotFoundError`, `ObjectStoreError`."""
        # Otherwise s3fs asks for the size first, to read large ones in several parts at a time.
        return self._do(
            name, lambda filesystem, path: bytes(filesystem.cat_file(path, max_concurrency=1))
        )

    def get_json(self, name: str) -> Any:
        """The content of a JSON object; None if there is none."""
        try:
            return json.loads(self.get(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedObjectError(f"{self.url}/{name} is no JSON: {error}") from error

    def put(self, name: str, data: bytes) -> None:
        """Writes an object, in the place of one that is there."""
        self._do(name, lambda filesystem, path: filesystem.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Writes an object if there is none, and says whether it is there with this content.

        An answer can be lost after the object was written, and the second try then finds it: so
        content that two may write at a time must say who wrote it.
        """

        def act(filesystem: Any, path: str) -> Exception | None:
            try:
                filesystem.pipe_file(path, data, mode="create")
            except FileExistsError as error:
                return error
            except OSError as error:
                if error.errno != errno.EINVAL:  # how s3fs tells 412, among others
                    raise
                return error
            return None

        for _ in range(TRIES):
            refused = self._do(name, act)
            if refused is None:
                return True
            try:
                return self.get(name) == data
            except FileNotFoundError:
                continue  # it has been removed since, or the store does not know the condition
        raise ObjectStoreError(
            f"{self.url}/{name} is not there and cannot be created: {refused}; can this store "
            "create objects only if there is none?"
        )

    def check_conditions(self, name: str) -> None:
        """Raises `ObjectStoreError` if the store creates an object that is there already: then two
        runs would each believe to be alone, and nothing that is built on this would hold."""
        if self.create(name, secrets.token_bytes(16)):
            raise ObjectStoreError(
                f"{self.url} cannot hold runs: it creates objects that are there already, so it "
                "does not know If-None-Match; use a store that does, or a folder"
            )

    def send(self, path: Path, name: str) -> None:
        """Writes a file's content as an object."""
        self._do(name, lambda filesystem, there: filesystem.put_file(str(path), there))

    def fetch(self, name: str, path: Path, sha256: str | None = None) -> None:
        """Writes an object's content to a file, which is there completely or not at all.

        Args:
            sha256: what the content must have; `DamagedObjectError` is raised for another.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")

        def act(filesystem: Any, there: str) -> None:
            expected = filesystem.info(there)["size"]
            filesystem.get_file(there, str(temporary))
            size = temporary.stat().st_size
            if size != expected:
                raise ConnectionError(f"{size} of {expected} bytes came")

        try:
            for last in (False, True):
                self._do(name, act)
                if sha256 is None:
                    break
                with temporary.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                        break
                if last:
                    raise DamagedObjectError(f"{self.url}/{name} is not as it was stored")
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def opened(self, name: str) -> io.BufferedIOBase:
        """An object to read in any order, in part; a small one is read whole."""
        size = int(self._do(name, lambda filesystem, path: filesystem.info(path)["size"]))
        if size <= WHOLE:
            return io.BytesIO(self.get(name))
        return io.BufferedReader(ObjectReader(self, name, size), BLOCK)

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """A part of an object's content."""

        def act(filesystem: Any, path: str) -> bytes:
            data = bytes(filesystem.cat_file(path, start=start, end=end))
            if len(data) != end - start:
                raise ConnectionError(f"{len(data)} of {end - start} bytes came")
            return data

        return self._do(name, act)

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects below a folder: name from there, to bytes. Names that would lead out of a
        folder on a disk are passed over; nobody here writes such."""

        def act(filesystem: Any, path: str) -> dict[str, int]:
            filesystem.invalidate_cache()
            found = filesystem.find(path, detail=True)
            return {
                name.removeprefix(path).lstrip("/"): int(facts["size"] or 0)
                for name, facts in found.items()
                if facts["type"] == "file"
                and name.startswith(path + "/")
                and stays_inside(name.removeprefix(path + "/"))
            }

        try:
            return self._do(folder, act)
        except FileNotFoundError:
            return {}

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder, in order."""

        def act(filesystem: Any, path: str) -> list[str]:
            filesystem.invalidate_cache()
            names = (
                facts["name"].rstrip("/").rpartition("/")[2]
                for facts in filesystem.ls(path, detail=True)
                if facts["type"] == "directory"
            )
            return sorted(name for name in names if stays_inside(name))

        try:
            return self._do(folder, act)
        except FileNotFoundError:
            return []

    def remove(self, names: Collection[str]) -> None:
        """Removes objects; those that are not there are passed over."""

        def act(filesystem: Any, path: str) -> None:
            with suppress(FileNotFoundError):
                filesystem.rm_file(path)

        self.at_once(lambda name: self._do(name, act), names)

    def remove_folder(self, folder: str) -> None:
        """Removes all objects below a folder."""
        self.remove([f"{folder}/{name}" for name in self.sizes(folder)])

    def fetch_folder(self, folder: str, path: Path) -> None:
        """Writes the objects below a folder to files, those that are not there with this size."""
        missing = []
        for name, size in self.sizes(folder).items():
            target = path / name
            if not target.exists() or target.stat().st_size != size:
                missing.append(name)
        self.at_once(lambda name: self.fetch(f"{folder}/{name}", path / name), missing)

    def send_folder(self, path: Path, folder: str, without: Collection[str] = ()) -> None:
        """Writes the files below a folder as objects, links and `without` left out."""
        files = [
            each for each in sorted(path.rglob("*")) if each.is_file() and not each.is_symlink()
        ]
        names = [file.relative_to(path).as_posix() for file in files]
        chosen = [name for name in names if name not in without]
        self.at_once(lambda name: self.send(path / name, f"{folder}/{name}"), chosen)
