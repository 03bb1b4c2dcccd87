"""Reports: `report.json`, and what they keep for the comparison of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Self, TypeAlias

from pydantic import Field

from pipelines.contracts.base import Contract, Properties, read
from pipelines.contracts.predictions import Answer
from pipelines.contracts.runs import GateOutcome, Machine, RunRecord, StageRecord
from pipelines.contracts.scores import (
    Classification,
    Comparison,
    LatentExchange,
    Score,
    Tradeoff,
    Variety,
    WishKnown,
)

REPORT = "report.json"
REPORT_FORMAT = 1
"""The version of `report.json`."""
SENTENCES, CURVE = "sentences.json", "curve.json"
"""Files of a report and of a model: `Sentences`, and a list of `Point`."""
Point: TypeAlias = dict[str, int | float]
"""A point of a learning curve: `step`, losses, and scores of the validation split by name."""


class Example(Contract):
    """A row that a report shows."""

    id: str
    task: str
    split: str
    modalities: str
    """Joined by "+"."""
    text: str | None = None
    reference: str
    hypothesis: str
    labels: tuple[str, ...] | None = None
    """Of a classification, the most probable first."""
    probabilities: tuple[float, ...] | None = None
    previews: dict[str, str] = Field(default_factory=dict)
    """Modality to a data URL; not in `report.json`."""


class Prompt(Answer):
    """An answer in a report."""

    stage: str
    """The stage that answered."""


class Lineage(Contract):
    """An artifact that a report is made from."""

    kind: str
    digest: str
    fingerprint: str
    rows: int
    properties: Properties
    versions: dict[str, str]


class Content(Contract):
    """What a report says whenever it is shown: it depends on the artifacts alone."""

    title: str | None = None
    scores: tuple[Score, ...]
    curves: dict[str, tuple[Point, ...]]
    """By the name of the training stage."""
    classification: tuple[Classification, ...]
    diversity: tuple[Variety, ...]
    latent: tuple[LatentExchange, ...] = ()
    wishes: tuple[WishKnown, ...] = ()
    tradeoff: tuple[Tradeoff, ...] = ()
    systems: tuple[Comparison, ...]
    examples: tuple[Example, ...]
    prompts: tuple[Prompt, ...]
    rejected: dict[str, dict[str, int]]
    """Stage and reason to rows."""
    lineage: dict[str, Lineage]
    """By stage."""


class Report(Content):
    """A report of a run: `report.json`."""

    format: int = 1
    pipeline: str
    run: str
    started: str
    status: str
    seed: int
    machine: Machine
    gates: tuple[GateOutcome, ...]
    baseline: str | None
    comparison: tuple[Comparison, ...]
    stages: dict[str, StageRecord]
    """Without their parts, which stand in `run.json`."""

    @classmethod
    def of(cls, content: Content, record: RunRecord) -> Self:
        """The report of a run, from what was gathered and what became of the run."""
        shown = {name: getattr(content, name) for name in content.model_fields_set}
        whole = {"stages": {"__all__": {"parts"}}}
        stages = record.model_dump(exclude_unset=True, include={"stages"}, exclude=whole)["stages"]
        return cls(
            **shown,
            format=REPORT_FORMAT,
            pipeline=record.pipeline,
            run=record.run,
            started=record.started,
            status=record.status,
            seed=record.seed,
            machine=record.machine,
            gates=record.gates,
            baseline=record.baseline,
            comparison=record.comparison,
            stages=stages,
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The report in a folder, see `read`."""
        return read(folder / REPORT, cls, REPORT_FORMAT)


class Sentence(Contract):
    """A row of the test split, for the comparison of two runs."""

    id: str
    task: str
    split: str
    text: str | None
    reference: str
    hypothesis: str
    score: float | None
    """Of this row alone."""
    media: tuple[str, ...] = ()
    """Names of files in `media/`."""


class Sentences(Contract):
    """The rows of a report for the comparison of runs: `sentences.json`."""

    metrics: dict[str, str]
    """`TASK/SPLIT` to the metric of its rows' scores."""
    rows: tuple[Sentence, ...]
