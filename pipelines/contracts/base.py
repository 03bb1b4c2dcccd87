"""The base of all contracts, and how they are read from files. Formats carry a version: an older
one is read, a newer one is refused with what helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

Json: TypeAlias = JsonValue
"""A value of a JSON document."""
Properties: TypeAlias = dict[str, Any]
"""Facts of an artifact for the stages downstream, as JSON has them. Each kind of artifact has its
own, which the stages that make and take this kind agree on."""


class Contract(BaseModel):
    """Base class of all records: frozen, and ignores fields that a later version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> dict[str, Json]:
        """The fields that were set, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class LaterVersionError(ValueError):
    """A later version wrote a file, so this one could misread it."""


def refuse_later(path: Path, written: Any, known: int) -> None:
    """Raises `LaterVersionError` if a later version wrote the file, `ValueError` if its format is
    no number. Files from before formats had a version have the first."""
    if not isinstance(written, dict):
        return
    format = written.get("format", 1)
    if not isinstance(format, int):
        raise ValueError(f"{path} is damaged: format: {format!r} is not a number")
    if format > known:
        raise LaterVersionError(
            f"{path} was written by a later version (format {format}, this version "
            f"reads up to {known}): pip install --upgrade gemini-pipelines"
        )


C = TypeVar("C", bound=Contract)


def read(path: Path, kind: type[C], known: int = 1) -> C:
    """What is stored in a file of JSON.

    Args:
        known: the latest format that this version knows.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, or of a later version.
    """
    written = parsed(path)
    refuse_later(path, written, known)
    return _validated(path, kind, written)


def read_list(path: Path, kind: type[C]) -> list[C]:
    """What is stored in a file that holds a JSON list; raises as `read`."""
    written = parsed(path)
    if not isinstance(written, list):
        raise ValueError(f"{path} is damaged: it is not a list")
    return [_validated(path, kind, entry) for entry in written]


def parsed(path: Path) -> Any:
    """The value in a file of JSON. Raises `OSError` if there is no such file, `ValueError` if it is
    damaged: empty, cut, not UTF-8, or nested more deeply than Python's stack allows."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is not JSON that we wrote: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _validated(path: Path, kind: type[C], written: Any) -> C:
    try:
        return kind.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is damaged: {where}: {first['msg']}") from error
