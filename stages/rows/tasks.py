"""What stages downstream must know of the tasks of some rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact


def task_facts(
    output: Path, task: str, languages: Mapping[Any, str], labels: bool | list[str]
) -> dict[str, Any]:
    """What the stages downstream must know of a task, from its rows in a folder.

    Args:
        labels: those of a classification, or true for the targets of the training split.
    """
    rows = pl.scan_parquet(sorted(output.glob("rows/*.parquet"))).filter(task=task)
    if labels is True:
        found = rows.filter(split="train").select("target").unique().sort("target").collect()
        labels = found["target"].to_list()
    modalities = rows.select("modalities").unique().sort("modalities").collect()["modalities"]
    return {
        "languages": dict(languages),
        "labels": labels or [],
        "modalities": modalities.to_list(),
    }


def joined_tasks(artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """The tasks of several records together. Raises `ValueError` where they contradict."""
    tasks: dict[str, Any] = {}
    for artifact in artifacts:
        for name, facts in artifact.properties["tasks"].items():
            if name not in tasks:
                tasks[name] = dict(facts)
                continue
            for key in ("languages", "labels"):
                if tasks[name][key] != facts[key]:
                    raise ValueError(
                        f"task {name!r} has {key} {tasks[name][key]} in one set of records and "
                        f"{facts[key]} in another; give one of them another task:"
                    )
            both = {*tasks[name]["modalities"], *facts["modalities"]}
            tasks[name]["modalities"] = sorted(both)
    return dict(sorted(tasks.items()))
