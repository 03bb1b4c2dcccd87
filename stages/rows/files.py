"""Files of scratch and of results: complete or not there, and told apart from others."""

from __future__ import annotations

import secrets
from pathlib import Path

from pipelines.store.files import sync
from pipelines.store.shared import SharedPath


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process has: one of a killed run may still be writing."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def put_in_place(written: Path, path: Path) -> None:
    """Gives a file its name when it is on the disk."""
    sync(written)
    written.replace(path)


def sizes_of(*places: SharedPath) -> dict[str, int]:
    """The sizes of those files that were written, for an outcome: other machines can then read
    them, and a resumed run uses it only if they are as they were (see
    `pipelines.running.beam_jobs.BeamJobs.map`)."""
    return {place.name: place.here.stat().st_size for place in places if place.here.exists()}
