"""Tasks: what is asked of a row."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.contracts.base import Contract, Json


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
    """Tasks as `properties["tasks"]` of an artifact has them."""
    return {name: task.to_json() for name, task in tasks.items()}
