"""Whether the files of a folder are those that were stored, before anything is loaded from it.

Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def check(folder: Path, only: str | None = None) -> None:
    """Compares the files of a model's or graphs' folder with the digests in its manifest: all, or
    only the one of a name.

    A folder without a manifest, such as one that is just being made, is not checked; nor is what
    the manifest lists and the folder does not have, which nobody can load.

    Raises `ValueError`, which names the file, if one is not as it was stored, or was not stored.
    """
    path = folder / MANIFEST
    if not path.exists():
        return
    try:
        files = {
            str(file["path"]): (int(file["size"]), str(file["sha256"]))
            for file in json.loads(path.read_text(encoding="utf-8"))["files"]
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); make or copy the folder again") from error
    for stored in sorted(folder.rglob("*")):
        name = stored.relative_to(folder).as_posix()
        if name == MANIFEST or stored.name.startswith(".") or stored.is_dir():
            continue
        if only not in (None, name):
            continue
        if name not in files or not stored.is_file():
            raise ValueError(
                f"{stored} was not there when the folder was stored, see {MANIFEST}; remove it, or "
                "make or copy the folder again"
            )
        size, digest = files[name]
        with stored.open("rb") as file:
            same = stored.stat().st_size == size and (
                hashlib.file_digest(file, "sha256").hexdigest() == digest
            )
        if not same:
            raise ValueError(
                f"{stored} is not as it was stored: its content does not have the digest in "
                f"{MANIFEST}; make or copy the folder again"
            )
