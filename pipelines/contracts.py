"""What is told of a run, by name: scores, comparisons, gates, stages, the run itself.

Each has one form in JSON, which is its fields; engine, stages, reports, the site and MLflow all
read and write them through these classes. Formats carry a version: an older one is read, a newer
one is refused with what helps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RUN_FORMAT = 1
"""The version of `run.json`. Raised when a field changes its meaning; fields may be added."""
RUN, SCORES = "run.json", "scores.json"
Parts = dict[str, dict[str, Any]]
"""CONFIG, INPUT, CODE and LIBRARY, each a flat mapping of what to its value or digest."""


class Contract(BaseModel):
    """Base of all: frozen. What a later version added is not misread, but left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> dict[str, Any]:
        """The fields that were given, as JSON has them."""
        return self.model_dump(mode="json", exclude_unset=True)


class Score(Contract):
    """A corpus score of a task and split, over all its rows or a slice of them."""

    task: str
    split: str
    slice: dict[str, str] | None = None
    """Column to value; None for all rows."""
    metric: str
    value: float
    signature: str = ""
    """How it was computed, so that it can be computed again."""
    n: int = 0
    """Segments."""
    ci95: tuple[float, float] | None = None
    """The ends of the 95% interval."""
    baseline: str | None = None
    """The name of another system whose score it is; None for the run's own."""

    @property
    def own(self) -> bool:
        """Whether it is the run's own."""
        return not self.baseline

    @property
    def whole(self) -> bool:
        """Whether it is over all rows."""
        return not self.slice


class Comparison(Contract):
    """A score beside a baseline's, on the segments that both have."""

    task: str
    split: str
    slice: dict[str, str] | None = None
    n: int
    """Segments of ours."""
    common: int
    """Segments that both have."""
    changed: int
    """Of those, the ones of which something else was said."""
    metric: str
    value: float
    baseline: float
    difference: float
    ci95: tuple[float, float]
    """Of the difference."""
    p: float
    """Paired approximate randomisation; what verdicts and gates go by."""
    p_bootstrap: float
    p_randomisation: float
    """As sacreBLEU prints them."""
    system: str | None = None
    """The other system; None for a baseline run."""

    @property
    def whole(self) -> bool:
        """Whether it is over all rows."""
        return not self.slice


class GateOutcome(Contract):
    """What became of a quality gate."""

    gate: str
    """As it was written."""
    passed: bool
    message: str


class StageRecord(Contract):
    """What became of a stage in a run. A skipped one has a status and a reason alone."""

    status: Literal["ran", "cached", "skipped"]
    reason: str
    seconds: float = 0.0
    """In this run."""
    made_in_seconds: float | None = None
    """In the run that made the result."""
    measured: dict[str, float] = Field(default_factory=dict)
    kind: str | None = None
    rows: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)
    """By reason."""
    digest: str | None = None
    fingerprint: str | None = None
    artifact: str | None = None
    """Its folder, from the folder of all runs."""
    parts: Parts = Field(default_factory=dict)


class Machine(Contract):
    """Where a run ran."""

    platform: str
    cpus: int
    python: str
    version: str
    """Of this project."""


def refuse_later(path: Path, written: Any, known: int) -> None:
    """Raises `ValueError` for what a later version wrote to a file, which could be misread. What
    was written before formats were has the first."""
    if isinstance(written, dict) and written.get("format", 1) > known:
        raise ValueError(
            f"{path} was written by a later version (format {written['format']}, known is "
            f"{known}): pip install --upgrade gemini-pipelines"
        )


class RunRecord(Contract):
    """A run of a pipeline: `run.json`."""

    format: int = 1
    """Runs of 0.1.0 do not say theirs, which is 1."""
    pipeline: str
    run: str
    started: str
    ended: str | None = None
    status: Literal["running", "complete", "gate failed", "failed", "stopped"]
    exit_code: int | None = None
    error: str | None = None
    seed: int
    machine: Machine
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    gates: tuple[GateOutcome, ...] = ()
    baseline: str | None = None
    """The run that scores were compared with."""
    comparison: tuple[Comparison, ...] = ()
    scores: tuple[Score, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a run's folder.

        Raises:
            OSError: there is none.
            ValueError: it is damaged, or of a later version.
        """
        path = folder / RUN
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        refuse_later(path, found, RUN_FORMAT)
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path} is damaged: {where}: {first['msg']}") from error

    def with_stage(self, name: str, stage: StageRecord) -> Self:
        return self.model_copy(update={"stages": {**self.stages, name: stage}})
