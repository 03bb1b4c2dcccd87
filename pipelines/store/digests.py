"""Digests of values and of files.

A digest of values is sha256 over canonical JSON, each part preceded by its length, so that two
different sets of parts never give the same bytes. A value that cannot be hashed is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces. Raises `TypeError` if JSON cannot hold it."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return text.encode("utf-8")


def digest(parts: Mapping[str, object]) -> str:
    """sha256 (hex) over the parts in order of their names, each preceded by its length."""
    hashed = hashlib.sha256()
    for name in sorted(parts):
        for piece in (name.encode("utf-8"), canonical(parts[name])):
            hashed.update(len(piece).to_bytes(8, "big"))
            hashed.update(piece)
    return hashed.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
