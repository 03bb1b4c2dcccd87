"""What stages downstream must know about the tasks of some rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from pipelines.contracts.tasks import Task

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact


def task_of(
    output: Path, name: str, languages: Mapping[str, str], labels: bool | list[str]
) -> Task:
    """What the stages downstream must know about a task, from its rows in a folder.

    Args:
        labels: labels of a classification, or true for the targets of the training split.
    """
    rows = pl.scan_parquet(sorted(output.glob("rows/*.parquet"))).filter(task=name)
    if labels is True:
        targets = rows.filter(split="train").select("target").unique().sort("target")
        train = targets.collect(engine="streaming")
        labels = train["target"].to_list()
    distinct = rows.select("modalities").unique().sort("modalities")
    modalities = distinct.collect(engine="streaming")["modalities"]
    return Task(
        languages=dict(languages),
        labels=tuple(labels or ()),
        modalities=tuple(modalities.to_list()),
    )


def joined_tasks(artifacts: Iterable[Artifact]) -> dict[str, Task]:
    """The tasks of several records together. Raises `ValueError` if they contradict."""
    tasks: dict[str, Task] = {}
    for artifact in artifacts:
        for name, task in artifact.tasks.items():
            if name not in tasks:
                tasks[name] = task
                continue
            known = tasks[name]
            for what, before, now in (
                ("languages", known.languages, task.languages),
                ("labels", list(known.labels), list(task.labels)),
            ):
                if before != now:
                    raise ValueError(
                        f"task {name!r} has {what} {before} in one set of records and {now} in "
                        "another; give one of them another task:"
                    )
            modalities = tuple(sorted({*known.modalities, *task.modalities}))
            tasks[name] = known.model_copy(update={"modalities": modalities})
    return dict(sorted(tasks.items()))
