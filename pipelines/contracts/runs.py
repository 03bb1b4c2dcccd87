"""Runs, their stages and their gates: `run.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import Field

from pipelines.contracts.base import Contract, Json, read
from pipelines.contracts.scores import Comparison, Score

RUN = "run.json"
RUN_FORMAT = 1
"""The version of `run.json`. Raised when a field changes its meaning; fields may be added."""
Parts: TypeAlias = dict[str, dict[str, Json]]
"""CONFIG, INPUT, CODE and LIBRARY, each a flat mapping of what to its value or digest."""


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
        """The record in a run's folder, see `read`."""
        return read(folder / RUN, cls, RUN_FORMAT)

    def with_stage(self, name: str, stage: StageRecord) -> Self:
        return self.model_copy(update={"stages": {**self.stages, name: stage}})
