"""What meeting wishes costs: the share of outputs that have what was wished for, beside BLEU.

A judge that is independent of the model says what outputs are. Only rows count of which some
reference has what is wished for: elsewhere nobody knows whether it can be had. Intervals resample
rows, as `stages.measures.significance` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipelines.contracts.scores import Tradeoff
from stages.judges import WishJudge
from stages.measures.significance import intervals
from stages.measures.statistics import (
    RatioStatistic,
    Statistic,
    has_four_words,
    share,
    statistic,
)
from stages.score.segments import TaskScoring

MET = RatioStatistic("met", "outputs that have what was wished for", lambda _: (), share)
SETTING = ["task", "kind", "wish", "value", "strength"]
"""Columns that say how outputs were made."""


def tradeoffs(
    table: pl.DataFrame,
    split: str,
    tasks: Mapping[str, TaskScoring],
    judges: Mapping[str, WishJudge],
) -> list[Tradeoff]:
    """One entry for each task, wish with its value, and way of making outputs.

    Args:
        table: `task`, `kind`, `wish`, `value`, `strength`, `drawn`, `id`, `sample`, `hypothesis`,
            `reference`, and the tasks' further references. Outputs without wish and value stand
            beside those of all of them.
    """
    entries = []
    wishes = table.select("wish", "value").drop_nulls().unique(maintain_order=True).rows()
    for wish, value in wishes:
        if wish not in judges:
            continue
        is_asked = (pl.col("wish") == wish) & (pl.col("value") == value)
        asked = table.filter(pl.col("wish").is_null() | is_asked)
        for (task, kind, _, _, strength), part in asked.group_by(SETTING, maintain_order=True):
            found = Outputs(part, tasks[str(task)], judges[wish], value)
            if found.rows:
                entry = Tradeoff(
                    task=str(task),
                    split=split,
                    wish=wish,
                    value=value,
                    kind=str(kind),
                    strength=float(str(strength)),
                    rows=found.rows,
                    drawn=int(part["drawn"][0]),
                    **found.values(),
                    ci95=intervals(found.measures, found.statistics),
                )
                entries.append(entry)
    return entries


class Outputs:
    """The outputs that were made in one way, of the rows of which a reference has the value."""

    def __init__(
        self, part: pl.DataFrame, scoring: TaskScoring, judge: WishJudge, value: str
    ) -> None:
        names = ["reference", *(name for name in scoring.references if name in part.columns)]
        of_row: dict[str, list[dict[str, Any]]] = {}
        for output in part.sort("id", "sample", maintain_order=True).to_dicts():
            of_row.setdefault(output["id"], []).append(output)
        chosen, met = [], []
        for outputs in of_row.values():
            wanted = [outputs[0][name] for name in names if outputs[0][name]]
            if not any(judge.meets(reference, value) for reference in wanted):
                continue
            # Of several, the first that has the value.
            fitting = [output for output in outputs if judge.meets(output["hypothesis"], value)]
            chosen.append((fitting or outputs)[0])
            met.append((float(bool(fitting)), 1.0))
        self.rows = len(chosen)
        self.measures: dict[str, Statistic] = {"met": MET}
        self.statistics = {"met": np.array(met)}
        bleu = statistic("bleu", scoring.tokenizer, references=tuple(names[1:]))
        columns = {name: [row[name] for row in chosen] for name in ("hypothesis", *names)}
        segments = bleu.segments(columns)
        if chosen and has_four_words(segments):
            self.measures["bleu"], self.statistics["bleu"] = bleu, segments

    def values(self) -> dict[str, float]:
        return {
            name: measure.score(self.statistics[name].sum(axis=0))
            for name, measure in self.measures.items()
        }
