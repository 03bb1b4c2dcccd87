"""Where files may be that rows name. Tables are not trusted: a row could name any file that the
user can read, and its content would stand in the store and in reports."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipelines.store.sources import local_path
from stages.ingest.errors import RowError


@dataclass(frozen=True)
class Places:
    """The folder of a table, and other places that the pipeline file allows."""

    folder: str
    """A path, or a URL; relative names start here."""
    allowed: tuple[str, ...] = ()
    """Absolute paths of folders, and URL prefixes."""

    def url(self, locator: str) -> str:
        """The URL of a file that a row names. Raises `RowError` if it may not be read."""
        if "\0" in locator or "\n" in locator:
            raise RowError("no file name", repr(locator[:80]))
        if _is_remote(locator):
            return self._remote(locator, locator)
        inside = local_path(locator)
        assert inside is not None
        if _is_remote(self.folder):
            if inside.is_absolute() or locator.startswith("file:"):
                return self._local(inside, locator)
            return self._remote(f"{self.folder.rstrip('/')}/{locator}", locator)
        return self._local(Path(self.folder) / inside, locator)

    def _remote(self, url: str, locator: str) -> str:
        place = _plain(url)
        if place is not None:
            for prefix in map(_plain, filter(_is_remote, (self.folder, *self.allowed))):
                if prefix is not None and place.startswith(prefix.rstrip("/") + "/"):
                    return url
        raise self._outside(locator)

    def _local(self, path: Path, locator: str) -> str:
        try:
            real = os.path.realpath(path)  # links are followed: what counts is where they lead
            facts = Path(real).stat()
        except FileNotFoundError:
            facts = None
        except (OSError, ValueError) as error:  # too long, links in a circle
            what = error.strerror if isinstance(error, OSError) else str(error)
            raise RowError("no file name", f"{locator[:80]}: {what}") from error
        for folder in (self.folder, *self.allowed):
            if not _is_remote(folder) and _is_below(real, os.path.realpath(folder)):
                break
        else:
            raise self._outside(locator)
        if facts is not None and not stat.S_ISREG(facts.st_mode):
            raise RowError("not a file", f"{locator[:80]} is a folder, a device or a pipe")
        return str(path)

    def _outside(self, locator: str) -> RowError:
        return RowError(
            "file outside the table's folder",
            f"{locator[:80]}; if it is yours, name its folder under allow:",
        )


NOWHERE = Places("/dev/null")


def _is_remote(place: str) -> bool:
    return local_path(place) is None


def _plain(url: str) -> str | None:
    """A URL whose path has no detours; None if it could lead somewhere else than it says: through
    another file system (::), or by dots that are escaped."""
    scheme, _, path = unquote(url).partition("://")
    if "::" in url or "%" in path or ".." in posixpath.normpath(path).split("/"):
        return None
    return f"{scheme}://{posixpath.normpath(path)}"


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def allowed_places(written: Sequence[str], base: Path) -> tuple[str, ...]:
    """The places under `allow:`; paths are relative to the pipeline file's folder."""
    return tuple(place if _is_remote(place) else str(base / place) for place in written)
