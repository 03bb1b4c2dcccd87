"""Where data files are: local globs, any fsspec URL, and files inside installed packages."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

PACKAGE = "package://"


class SourceError(Exception):
    """A file cannot be had, or is not the one that was planned with: missing, forbidden, not
    reachable, changed. Never about what is in a file: its damage makes rejects, this stops a stage.
    """


def filesystem_of(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises `SourceError`."""
    try:
        return url_to_fs(url)
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
    find: Callable[[], Iterable[str]]
    """Reads the tables and returns the files' URLs: the same for the same tables and options."""


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
    return matches


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


def open_binary(url: str) -> Any:
    return fsspec.open(url, "rb", compression="infer").open()


def content_digest(url: str) -> str:
    with fsspec.open(url, "rb") as file:
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


def exists(url: str) -> bool:
    path = local_path(url)
    if path is not None:
        return path.is_file()
    filesystem, inside = filesystem_of(url)
    return bool(filesystem.isfile(inside))


def read_whole(url: str, limit: int | None = None) -> bytes:
    """A whole file. Raises `ValueError` if larger than `limit`, `OSError` if it is missing."""
    with fsspec.open(url, "rb") as file:
        data: bytes = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(data) > limit:
        raise ValueError(f"more than {limit} bytes")
    return data


def first_line(url: str) -> bytes:
    """The first line of a file, decompressed; empty if it cannot be read."""
    try:
        with open_binary(url) as file:
            line: bytes = file.readline()
            return line
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        # Its parser will find the same damage, and reject the file by name.
        return b""


def line_ranges(url: str, size: int, header: bool) -> tuple[bytes, list[tuple[int, int, int]]]:
    """Cuts a file at line ends into ranges of about `size` bytes.

    Returns:
        The header line (empty without one), and (first byte, end byte, number of first line).
    """
    ranges: list[tuple[int, int, int]] = []
    with open_binary(url) as file:
        first = file.readline() if header else b""
        start = end = len(first)
        line = 2 if header else 1
        newlines = 0
        while True:
            chunk = file.read(size)
            if not chunk:
                break
            rest = b"" if chunk.endswith(b"\n") else file.readline()
            end += len(chunk) + len(rest)
            newlines = chunk.count(b"\n") + rest.count(b"\n")
            ranges.append((start, end, line))
            start, line = end, line + newlines
    return first, ranges
