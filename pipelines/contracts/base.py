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


def refuse_later(path: Path, written: Any, known: int) -> None:
    """Raises `ValueError` if a later version wrote the file, because it could be misread. Files
    from before formats had a version have the first."""
    if isinstance(written, dict) and written.get("format", 1) > known:
        raise ValueError(
            f"{path} was written by a later version (format {written['format']}, this version "
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
    written = _parsed(path)
    refuse_later(path, written, known)
    return _validated(path, kind, written)


def read_list(path: Path, kind: type[C]) -> list[C]:
    """What is stored in a file that holds a JSON list; raises as `read`."""
    written = _parsed(path)
    if not isinstance(written, list):
        raise ValueError(f"{path} is damaged: it is not a list")
    return [_validated(path, kind, entry) for entry in written]


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _validated(path: Path, kind: type[C], written: Any) -> C:
    try:
        return kind.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is damaged: {where}: {first['msg']}") from error
