"""Where data files are: local globs, any fsspec URL, and files inside installed packages."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.compression import compr
from fsspec.core import url_to_fs
from fsspec.utils import infer_compression

PACKAGE = "package://"


class SourceError(Exception):
    """A file cannot be had, or is not the one that was planned with: missing, forbidden, not
    reachable, changed. Never about what is in a file: its damage makes rejects, this stops a stage.
    """


def filesystem_of(url: str, **options: Any) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises `SourceError`."""
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        raise SourceError(f"{url} needs another library: {error}") from error
    except Exception as error:  # each file system has errors of its own, as for a broken zip file
        raise SourceError(f"{url} cannot be opened: {error}") from error


@dataclass(frozen=True)
class SourceFile:
    """`shown` is what the user wrote, with wildcards filled in; `url` is what fsspec opens."""

    shown: str
    url: str


@dataclass(frozen=True)
class NamedFiles:
    """Files that tables name, which are found by reading those tables."""

    tables: Sequence[SourceFile]
    options: str
    """The other settings that decide which files are named."""
    find: Callable[[], Iterable[SourceFile]]
    """Reads the tables and returns the files: the same for the same tables and options."""
    limit: int
    """Bytes; larger files are not read at all."""


Outside = str | SourceFile | NamedFiles
"""What a result depends on outside the store: a digest, a file, or files that tables name."""


def find_files(pattern: str, base: Path) -> list[SourceFile]:
    """The files that a path, glob, fsspec URL or `package://NAME/PATH` stands for, in order.

    Raises `ValueError` if there is none; it says what was looked for, and where.
    """
    if pattern.startswith(PACKAGE):
        name, _, inside = pattern.removeprefix(PACKAGE).partition("/")
        root = package_folder(name)
        return [
            SourceFile(f"{PACKAGE}{name}/{path.relative_to(root).as_posix()}", str(path))
            for path in _glob(root, inside, pattern)
        ]
    if "://" in pattern:
        filesystem, path = filesystem_of(pattern)
        try:
            matches = sorted(filesystem.glob(path)) if _magic(path) else [path]
            is_there = bool(matches) and filesystem.exists(matches[0])
        except Exception as error:  # each file system has errors of its own
            raise SourceError(f"source {pattern!r} cannot be reached: {error}") from error
        if not is_there:
            raise ValueError(f"source {pattern!r} matches no file")
        urls = [filesystem.unstrip_protocol(name) for name in matches]
        return [SourceFile(url, url) for url in urls]
    absolute = Path(pattern).is_absolute()
    root = Path(Path(pattern).anchor) if absolute else base
    inside = str(Path(pattern).relative_to(root)) if absolute else pattern
    return [
        SourceFile(path.relative_to(root).as_posix() if not absolute else str(path), str(path))
        for path in _glob(root, inside, pattern)
    ]


def _magic(path: str) -> bool:
    return any(character in path for character in "*?[")


def _glob(root: Path, inside: str, pattern: str) -> list[Path]:
    if not _magic(inside):
        matches = [root / inside] if (root / inside).is_file() else []
    else:
        matches = sorted(path for path in root.glob(inside) if path.is_file())
    if not matches:
        raise ValueError(f"source {pattern!r} matches no file (looked in {root})")
    for path in matches:
        if not str(path).isprintable() and _is_broken(str(path)):
            raise ValueError(f"the name of {str(path)!a} is not UTF-8; rename the file")
    return matches


def _is_broken(name: str) -> bool:
    """Whether a name of a file is not UTF-8; Python has half surrogate pairs for its bytes."""
    return any("\ud800" <= character <= "\udfff" for character in name)


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    if not name.isidentifier():
        raise ValueError(f"{PACKAGE}{name} does not name a package: write {PACKAGE}NAME/PATH")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {name!r} is not installed; pip install {name.replace('_', '-')}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


class SourceReader(io.RawIOBase):
    """A file that is read in any order.

    What the file system has to say is a `SourceError`. So whatever else a decoder on top of this
    raises is about the content.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.file = self._do(lambda: open_raw(url))

    def _do(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except SourceError:
            raise
        except Exception as error:  # each remote file system has errors of its own
            raise SourceError(_told(self.url, error)) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._do(lambda: self.file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._do(lambda: self.file.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._do(self.file.tell))

    def identity(self) -> tuple[object, ...]:
        """What changes when the file does."""
        if local_path(self.url) is None:
            return (str(self._do(lambda: remote_identity(self.url))),)
        facts = os.fstat(self.file.fileno())
        return (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)

    def close(self) -> None:
        if not self.closed and hasattr(self, "file"):
            self.file.close()
        super().close()


class SourceStream(SourceReader):
    """The bytes of a file, or of a part of it, one after the other, hashed as they are read."""

    def __init__(self, url: str, start: int = 0, end: int | None = None) -> None:
        """
        Args:
            start, end: the part, in bytes; to the end of the file if `end` is None.
        """
        super().__init__(url)
        self.left = None if end is None else end - start
        self._hash = hashlib.sha256()
        if start:
            super().seek(start)

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        part = buffer if self.left is None else memoryview(buffer)[: self.left]
        count = super().readinto(part)
        self._hash.update(memoryview(buffer)[:count])
        if self.left is not None:
            self.left -= count
        return count

    def digest(self) -> str:
        """sha256 (hex) of the whole part; reads what nobody has read yet."""
        buffer = bytearray(1 << 20)
        while self.readinto(buffer):
            pass
        return self._hash.hexdigest()


def _told(url: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{url} is missing; do all workers have the file?"
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{url} cannot be read: {what}"


def open_raw(url: str) -> Any:
    """A file as it is stored. Raises `OSError`, or `SourceError` if it is no regular file: a pipe
    would wait for ever, and a device need not end."""
    path = local_path(url)
    if path is None:
        filesystem, inside = filesystem_of(url)
        return filesystem.open(inside, "rb")
    # Without O_NONBLOCK, opening a pipe already waits.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SourceError(f"{url} is not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


class TooLargeError(ValueError):
    """Content has more bytes than an option allows."""


class _Limited(io.RawIOBase):
    """Unpacked bytes, of which there may only be so many."""

    def __init__(self, file: Any, limit: int) -> None:
        super().__init__()
        self.file, self.limit, self.count = file, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        self.count += len(data)
        if self.count > self.limit:
            raise TooLargeError(
                f"it unpacks to more than max_unpacked_bytes: {self.limit:,}; is that expected?"
            )
        buffer[: len(data)] = data
        return len(data)


def unpacked(stream: io.RawIOBase, shown: str, limit: int) -> io.BufferedReader:
    """The content of a file, unpacked as its name's ending says, up to `limit` bytes.

    Raises `TooLargeError` while it is read, and whatever the unpacking library raises for damage.
    """
    packing = infer_compression(shown)
    if packing is None:
        return io.BufferedReader(stream, 1 << 20)
    if packing not in compr:
        raise SourceError(f"{shown} needs a library that unpacks {packing}")
    plain = compr[packing](io.BufferedReader(stream, 1 << 20), mode="rb")
    return io.BufferedReader(_Limited(plain, limit), 1 << 20)


def content_digest(url: str) -> str:
    """sha256 (hex) of a file. Raises `OSError`, `SourceError`."""
    with open_raw(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_path(url: str) -> Path | None:
    """The path of a file on this machine; None for a remote file."""
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url or "::" in url else Path(url)


CHANGES = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "mtime")
"""What object stores report about a file and that changes when the file changes."""


def remote_identity(url: str) -> str | None:
    """A text that changes when a remote file changes; None if its store reports nothing such."""
    filesystem, path = filesystem_of(url)
    facts = filesystem.info(path)
    known = {name: str(facts[name]) for name in CHANGES if facts.get(name) is not None}
    return json.dumps([facts.get("size"), known]) if known else None


def file_size(url: str) -> int | None:
    """Bytes of a regular file; None if there is none. Raises `SourceError` if nobody can say."""
    path = local_path(url)
    if path is not None:
        try:
            facts = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(_told(url, error)) from error
        return facts.st_size if stat.S_ISREG(facts.st_mode) else None
    filesystem, inside = filesystem_of(url)
    try:
        return int(filesystem.size(inside) or 0) if filesystem.isfile(inside) else None
    except Exception as error:  # each remote file system has errors of its own
        raise SourceError(_told(url, error)) from error


def read_whole(url: str, limit: int) -> bytes:
    """A whole file. Raises `FileNotFoundError`, `TooLargeError` for more than `limit` bytes, and
    `SourceError` if it is there and cannot be read."""
    try:
        with open_raw(url) as file:
            data: bytes = file.read(limit + 1)
    except (FileNotFoundError, SourceError):
        raise
    except Exception as error:
        raise SourceError(_told(url, error)) from error
    if len(data) > limit:
        raise TooLargeError(f"more than {limit:,} bytes")
    return data


def check_planned(name: str, digest: str, planned: Mapping[str, str]) -> None:
    """Raises `SourceError` if a file is not the one that was planned with.

    Args:
        planned: digests by name; of a file that is not there, nothing is known.
    """
    if planned.get(name, digest) != digest:
        raise source_changed(name)


def source_changed(name: str) -> SourceError:
    """The error for a file that is not the one that was planned with."""
    return SourceError(f"{name} has changed since it was read for the plan; run again")


def read_planned(pattern: str, base: Path, planned: Mapping[str, str], limit: int) -> bytes:
    """The whole of one file, as it was planned with. Raises what `find_files`, `read_whole` and
    `check_planned` raise."""
    file, *others = find_files(pattern, base)
    if others:
        raise ValueError(f"{pattern} matches {1 + len(others)} files; name one")
    data = read_whole(file.url, limit)
    check_planned(file.shown, hashlib.sha256(data).hexdigest(), planned)
    return data


def copy_planned(file: SourceFile, path: Path, planned: Mapping[str, str]) -> None:
    """Copies a file, for what reads it by its path. Raises as `read_planned`."""
    with SourceStream(file.url) as stream, path.open("wb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
        check_planned(file.shown, stream.digest(), planned)


@dataclass(frozen=True)
class LineRange:
    """A part of a file that ends where a line does."""

    start: int
    end: int
    line: int
    """The number of its first line, from 1."""
    digest: str
    """sha256 (hex) of its bytes."""


def line_ranges(url: str, size: int) -> tuple[list[LineRange], str]:
    """Cuts a file at line ends into ranges of about `size` bytes; a longer line is not divided.

    Returns:
        The ranges, and the digest of the whole file. Raises `SourceError`.
    """
    ranges: list[LineRange] = []
    stream = SourceStream(url)
    with io.BufferedReader(stream, 1 << 20) as file:
        start, line = 0, 1
        while True:
            part, length, newlines = hashlib.sha256(), 0, 0
            chunk = file.read(size)
            while chunk:
                length += len(chunk)
                newlines += chunk.count(b"\n")
                part.update(chunk)
                # The rest of the last line, in pieces: a file may have no other line.
                chunk = b"" if chunk.endswith(b"\n") else file.readline(1 << 20)
            if not length:
                break
            ranges.append(LineRange(start, start + length, line, part.hexdigest()))
            start, line = start + length, line + newlines
        return ranges, stream.digest()
