"""Runs, their stages and their gates: `run.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import Field

from pipelines.contracts.base import Contract, Json, read
from pipelines.contracts.scores import Comparison, Score

RUN = "run.json"
RUN_FORMAT = 1
"""The version of `run.json`. Increase it when a field changes its meaning, not to add a field."""
Parts: TypeAlias = dict[str, dict[str, Json]]
"""CONFIG, INPUT, CODE and LIBRARY, each a flat mapping of names to values or digests."""


def run_folders(home: Path) -> list[Path]:
    """The folders of a pipeline's runs, the newest first."""
    found = (path.parent for path in home.glob(f"*/{RUN}"))
    return sorted((path for path in found if not path.is_symlink()), reverse=True)


class GateOutcome(Contract):
    """The outcome of a quality gate."""

    gate: str
    """The gate as the user wrote it."""
    passed: bool
    message: str


class StageRecord(Contract):
    """The outcome of a stage in a run. A skipped stage has only a status and a reason."""

    status: Literal["ran", "cached", "skipped"]
    reason: str
    started: str | None = None
    """When it began in this run, if it ran."""
    seconds: float = 0.0
    """Seconds in this run, with all attempts and the waits between them."""
    attempts: int = 1
    """How often it was tried in this run."""
    made_in_seconds: float | None = None
    """Seconds in the run that made the result."""
    measured: dict[str, float] = Field(default_factory=dict)
    kind: str | None = None
    rows: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)
    """Number of rejected rows by reason."""
    digest: str | None = None
    fingerprint: str | None = None
    artifact: str | None = None
    """Its folder, relative to the folder of all runs."""
    parts: Parts = Field(default_factory=dict)


class Machine(Contract):
    """The machine of a run."""

    platform: str
    cpus: int
    python: str
    version: str
    """The version of this project."""


class RunRecord(Contract):
    """A run of a pipeline: `run.json`."""

    format: int = 1
    """Runs of version 0.1.0 do not state their format, which is 1."""
    pipeline: str
    run: str
    started: str
    ended: str | None = None
    status: Literal["running", "complete", "gate failed", "failed", "stopped"]
    exit_code: int | None = None
    error: str | None = None
    scheduled_as: str | None = None
    """What the scheduler that started it calls it."""
    variables: dict[str, str] = Field(default_factory=dict)
    """The pipeline's variables, as text."""
    late: bool = False
    """Whether it took longer than `expected:`."""
    seed: int
    machine: Machine
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    gates: tuple[GateOutcome, ...] = ()
    baseline: str | None = None
    """The run that scores were compared with."""
    comparison: tuple[Comparison, ...] = ()
    scores: tuple[Score, ...] = ()
    unfinished: str | None = None
    """The folder in the store's `work/` that a run left which was stopped or failed: what the next
    run resumes."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a run's folder, see `read`."""
        return read(folder / RUN, cls, RUN_FORMAT)

    def with_stage(self, name: str, stage: StageRecord) -> Self:
        return self.model_copy(update={"stages": {**self.stages, name: stage}})
