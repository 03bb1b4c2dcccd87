"""Scores and comparisons as the tables that a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.contracts.runs import RunRecord
from pipelines.contracts.scores import Comparison, Score

MAIN = ("accuracy", "bleu", "exact_match")
"""Where there is room for one score, a task shows the first of these that it has."""


@dataclass(frozen=True)
class ScoreTable:
    """The scores of a task and split over all rows."""

    task: str
    split: str
    main: Score
    scores: list[Score]


@dataclass(frozen=True)
class Rival:
    """Another run or system, and how its scores compare with this run's."""

    kind: str
    name: str | None
    entries: list[Comparison]
    """Those where an output differs."""
    same: list[tuple[str, str, int]]
    """Task, split and rows where no output differs."""


@dataclass(frozen=True)
class SystemCell:
    score: Score | None
    test: Comparison | None
    """Against this run; None in this run's own row."""


@dataclass(frozen=True)
class SystemRow:
    name: str | None
    """None for this run."""
    cells: list[SystemCell]


@dataclass(frozen=True)
class SystemTable:
    """This run and other systems on a task and split: systems down, metrics across."""

    task: str
    split: str
    metrics: list[str]
    rows: list[SystemRow]


@dataclass(frozen=True)
class BaselineRow:
    """A baseline's score and the model's own on the same task, split and metric."""

    baseline: Score
    model: Score | None


@dataclass(frozen=True)
class SliceRow:
    name: str
    cells: list[Score | None]


@dataclass(frozen=True)
class SliceTable:
    """Scores by slice. A slice of one column has its values down and the metrics across; a slice
    of two columns has their values down and across, for the task's main metric."""

    task: str
    split: str
    names: tuple[str, ...]
    """Of the slice's columns."""
    metrics: list[str]
    columns: list[str]
    rows: list[SliceRow]


def main_metric(metrics: Sequence[str]) -> str:
    return next((metric for metric in MAIN if metric in metrics), metrics[0])


def score_tables(scores: Sequence[Score]) -> list[ScoreTable]:
    """One table for each task and split."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.whole and score.own:
            groups.setdefault((score.task, score.split), []).append(score)
    tables = []
    for (task, split), rows in groups.items():
        wanted = main_metric([row.metric for row in rows])
        main = next(row for row in rows if row.metric == wanted)
        tables.append(ScoreTable(task, split, main, rows))
    return tables


def rivals(record: RunRecord, systems: Sequence[Comparison]) -> list[Rival]:
    """The baseline run, then other systems; without those that nothing was compared with."""
    compared: list[tuple[str, str | None, Sequence[Comparison]]] = [
        ("run", record.baseline, record.comparison)
    ]
    for name in dict.fromkeys(entry.system for entry in systems):
        compared.append(("system", name, [entry for entry in systems if entry.system == name]))
    return [
        Rival(
            kind,
            name,
            [entry for entry in entries if entry.changed],
            list(
                dict.fromkeys(
                    (entry.task, entry.split, entry.common)
                    for entry in entries
                    if not entry.changed and entry.whole
                )
            ),
        )
        for kind, name, entries in compared
        if entries
    ]


def system_tables(scores: Sequence[Score], systems: Sequence[Comparison]) -> list[SystemTable]:
    """This run and all other systems side by side, one table for each task and split. Each cell
    has its interval and p of its difference from this run, as sacreBLEU prints several systems."""
    names = list(dict.fromkeys(entry.system for entry in systems))
    tests = {
        (entry.task, entry.split, entry.metric, entry.system): entry
        for entry in systems
        if entry.whole
    }
    tables = []
    for task, split in dict.fromkeys((entry.task, entry.split) for entry in systems):
        of_task = {
            (score.baseline, score.metric): score
            for score in scores
            if score.whole and (score.task, score.split) == (task, split)
        }
        theirs = {metric for name, metric in of_task if name in names}
        metrics = [metric for name, metric in of_task if name is None and metric in theirs]
        rows = [
            SystemRow(
                name,
                [
                    SystemCell(of_task.get((name, m)), tests.get((task, split, m, name)))
                    for m in metrics
                ],
            )
            for name in (None, *names)
        ]
        shown = [row for row in rows if any(cell.score for cell in row.cells)]
        tables.append(SystemTable(task, split, metrics, shown))
    return tables


def baseline_rows(scores: Sequence[Score], systems: Sequence[Comparison]) -> list[BaselineRow]:
    """Every baseline's score beside the model's own; systems have a table of their own."""
    names = {entry.system for entry in systems}
    own = {
        (score.task, score.split, score.metric): score
        for score in reversed(scores)
        if score.own and score.whole
    }
    return [
        BaselineRow(score, own.get((score.task, score.split, score.metric)))
        for score in scores
        if score.baseline and score.baseline not in names
    ]


def slice_tables(scores: Sequence[Score]) -> list[SliceTable]:
    """One table for each task, split and slice."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[tuple[dict[str, str], Score]]] = {}
    for score in scores:
        if score.slice:
            key = (score.task, score.split, tuple(score.slice))
            groups.setdefault(key, []).append((score.slice, score))
    tables = []
    for (task, split, names), sliced in groups.items():
        metrics = list(dict.fromkeys(score.metric for _, score in sliced))
        if len(names) == 2:
            metrics = [main_metric(metrics)]
            sliced = [(values, score) for values, score in sliced if score.metric == metrics[0]]
            down, across = names
            columns = sorted({values[across] for values, _ in sliced}, key=lambda v: (len(v), v))
            cells = {(values[down], values[across]): score for values, score in sliced}
        else:
            columns = metrics
            cells = {(" · ".join(values.values()), s.metric): s for values, s in sliced}
        rows = [
            SliceRow(name, [cells.get((name, column)) for column in columns])
            for name in dict.fromkeys(name for name, _ in cells)
        ]
        tables.append(SliceTable(task, split, names, metrics, columns, rows))
    return tables
