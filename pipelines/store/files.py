"""Files that are replaced atomically: completely or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, which it replaces at the end; a reader sees the old file or
    the new one. It is on the disk before it has the name, so it is never empty after a power cut.
    """
    # Not the process's number: processes of two machines, or of two containers, can share one.
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    with replacing(path) as temporary:
        # Half a surrogate pair, as in the name of a file, is written as JSON escapes it.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
