"""Files that are replaced atomically: completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, which it replaces at the end; a reader sees the old file or
    the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    yield temporary
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    write_text(path, text + "\n")
