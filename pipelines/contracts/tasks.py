"""Tasks: what is asked of a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from pipelines.contracts.base import Contract, Json

NAME = re.compile(r"\w[\w .+-]{0,99}")


def checked_name(name: str) -> str:
    """The name of a task, which is part of the names of files. Raises `ValueError`."""
    if not NAME.fullmatch(name) or len(name.encode("utf-8")) > 200:
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise ValueError(
            f"{shown!r} cannot be the name of a task: it must be up to 100 letters, digits, spaces "
            "and . + - _, and begin with a letter or a digit"
        )
    return name


TaskName: TypeAlias = Annotated[str, AfterValidator(checked_name)]


class Task(Contract):
    """What the stages downstream must know of a task of some rows."""

    languages: dict[str, str]
    """Side to language code."""
    labels: tuple[str, ...]
    """Of a classification; empty where any text is an answer."""
    modalities: tuple[str, ...]
    """Every combination that rows have, each joined by "+"."""
    training_rows: dict[str, int] | None = None
    """Label to training rows; features of text have it."""

    @property
    def separate_modalities(self) -> set[str]:
        """The modalities that any row has."""
        return {name for combination in self.modalities for name in combination.split("+")}


def in_json(tasks: Mapping[str, Task]) -> dict[str, Json]:
    """Tasks as `properties["tasks"]` of an artifact has them. Raises `ValueError` for a name that
    is none."""
    return {checked_name(name): task.to_json() for name, task in tasks.items()}


def is_chinese(language: str | None) -> bool:
    """Whether a language code, as `zh` or `zh-Hant`, is one of Chinese."""
    return (language or "").lower().replace("_", "-").partition("-")[0] == "zh"
