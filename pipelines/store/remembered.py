"""Remembered digests of files, so that a plan does not read all sources and results again.

A digest is valid as long as the file's size, time of change and inode are the same, or on an object
store its ETag. The time of change has a limited resolution: a file that was changed and read within
one clock tick can change again without a new time. So, as git does with its index ("racy git"), the
digest of a file that was younger than one tick when it was read is not remembered.

The memory is a cache in the store. If it is lost or damaged, files are read again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from pipelines.store.digests import digest
from pipelines.store.sources import (
    NamedFiles,
    Outside,
    SourceFile,
    content_digest,
    file_size,
    local_path,
    remote_identity,
)

MISSING, REFUSED = "missing", "refused: "
"""Stand for the digest of a file that is not there, and for the URL of one that may not be named,
before the reason."""
GRAIN = 2.0
"""Seconds: the coarsest time resolution of a file system in use, which is FAT's."""
TABLES = """
create table if not exists files (url text primary key, identity text, digest text);
create table if not exists named (key text primary key, urls text);
"""


class Memory:
    """The remembered digests of one store. Several processes can use it at the same time."""

    def __init__(self, root: Path) -> None:
        self.path = root / "digests.sqlite"
        self._silent = False

    def digests(
        self, outside: Iterable[tuple[str, Outside]], code: str
    ) -> Iterator[tuple[str, str]]:
        """Name and digest of every file that a stage depends on, see `Stage.outside`.

        Args:
            code: a digest of the code that reads the tables that name files.
        """
        for name, file in outside:
            if isinstance(file, str):
                yield name, file
            elif isinstance(file, NamedFiles):
                for named in self.named(file, code):
                    shown = f"{name} {named.shown}"
                    if named.url.startswith(REFUSED):
                        yield shown, named.url
                        continue
                    size = file_size(named.url)
                    # Both become rejects when the rows are read.
                    if size is None:
                        yield shown, MISSING
                    elif size > file.limit:
                        yield shown, f"more than {file.limit} bytes"
                    else:
                        yield shown, self.digest(named.url)
            else:
                yield name, self.digest(file.url)

    def digest(self, url: str, key: str | None = None, again: bool = False) -> str:
        """sha256 (hex) over a file's content. Raises `OSError` if it cannot be read.

        Args:
            key: what the file is remembered by; its URL if it is not given.
            again: reads the file, whatever is remembered.
        """
        key = key or url
        before = identity(url)
        if again:
            self.forget(key)  # what is wrong must not stay remembered; it may not be possible
        elif before is not None:
            query = "select digest from files where url = ? and identity = ?"
            known = self._ask(query, key, before)
            if known is not None:
                return known
        started = time.time()
        computed = content_digest(url)
        if before is not None and before == identity(url) and _settled(url, started):
            self._tell("insert or replace into files values (?, ?, ?)", key, before, computed)
        return computed

    def remember(self, url: str, digest: str, key: str) -> None:
        """Takes it as known that a file, which nobody changes any more, has a digest."""
        known = identity(url)
        if known is not None:
            self._tell("insert or replace into files values (?, ?, ?)", key, known, digest)

    def forget(self, *keys: str) -> None:
        """Reads these files again when they are next asked for."""
        for key in keys:
            self._tell("delete from files where url = ?", key)

    def prune(self) -> None:
        """Forgets files on this machine that are no longer there."""
        with contextlib.suppress(sqlite3.Error, OSError):
            for (key,) in self._connection.execute("select url from files").fetchall():
                inside = key.removeprefix("store:")
                path = self.path.parent / "artifacts" / inside if inside != key else local_path(key)
                if path is not None and not path.exists():
                    self.forget(key)

    def forget_sources(self) -> None:
        """Reads all sources, and the tables that name files, again when they are next asked for."""
        self._tell("delete from files where url not like 'store:%'")
        self._tell("delete from named")

    def named(self, files: NamedFiles, code: str) -> list[SourceFile]:
        """The files that tables name; the tables are read only if they are new."""
        tables = {table.url: self.digest(table.url) for table in files.tables}
        key = digest({"tables": tables, "options": files.options, "code": code})
        known = self._ask("select urls from named where key = ?", key)
        if known is not None and (remembered := _listed(known)) is not None:
            return remembered
        found = list(files.find())
        if any(file.url.startswith(REFUSED) for file in found):
            return found  # Where a link leads can change without a change of the tables.
        listed = json.dumps([(file.shown, file.url) for file in found])
        self._tell("insert or replace into named values (?, ?)", key, listed)
        return found

    def _ask(self, query: str, *values: str) -> str | None:
        with contextlib.suppress(sqlite3.Error, OSError):
            row = self._connection.execute(query, values).fetchone()
            return str(row[0]) if row else None
        return None

    def _tell(self, statement: str, *values: str) -> None:
        if self._silent:
            return
        try:
            with self._connection as connection:
                connection.execute(statement, values)
        except (sqlite3.OperationalError, OSError):
            # Another process is writing, or the disk is full, or it may only be read: files are
            # read again. It is not tried for each of them, because it can take until the timeout.
            self._silent = True
        except sqlite3.DatabaseError:
            self.__dict__.pop("_connection", None)
            self.path.unlink(missing_ok=True)  # Damaged: start again.

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        """Opened only once: a plan can ask for as many files as a data set has pictures."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=10)
        # What is lost in a power cut is read again, so no write needs to wait for the disk.
        connection.execute("pragma synchronous = off")
        connection.executescript(TABLES)
        return connection


def _listed(text: str) -> list[SourceFile] | None:
    """Remembered files; None if they cannot be understood: a database has no checksums."""
    try:
        return [SourceFile(str(shown), str(url)) for shown, url in json.loads(text)]
    except (ValueError, TypeError):
        return None


def identity(url: str) -> str | None:
    """A text that changes when a file does, made without reading it; None if there is none."""
    path = local_path(url)
    if path is None:
        return remote_identity(url)
    facts = path.stat()
    return json.dumps([facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino])


def _settled(url: str, read: float) -> bool:
    """Whether a change of a file after the time `read` would change its identity."""
    path = local_path(url)
    if path is None:
        return True  # ETags do not depend on a clock.
    facts = path.stat()
    return max(facts.st_mtime, facts.st_ctime) < read - GRAIN
