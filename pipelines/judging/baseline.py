"""The run that another run is compared with, and those of its results that still exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.contracts.runs import RUN, RunRecord
from pipelines.contracts.scores import Comparison
from pipelines.stage import Stage
from pipelines.store.artifacts import Artifact, Store

LATEST = "latest"


@dataclass(frozen=True)
class BaselineRun:
    """A finished run: what it was, and where the results of its stages are."""

    record: RunRecord
    store: Store

    @property
    def name(self) -> str:
        return f"{self.record.pipeline}/{self.record.run}"

    def artifact(self, stage: str, kind: str) -> Artifact | None:
        """The result of a stage, which then stays until the run has ended; None if it is not
        there, or not as it was stored."""
        facts = self.record.stages.get(stage)
        if facts is None or facts.kind != kind or facts.fingerprint is None:
            return None
        self.store.hold(facts.fingerprint)
        return self.store.find(stage, facts.fingerprint)

    def compare(self, stages: Mapping[str, tuple[Stage, Artifact]]) -> list[Comparison]:
        """Compares every stage's scores with those of the stage of the same name in this run."""
        comparisons: list[Comparison] = []
        for name, (stage, artifact) in stages.items():
            theirs = self.artifact(name, artifact.kind)
            if theirs is not None:
                comparisons += stage.compare(artifact, theirs)
        return comparisons


def find_baseline(home: Path, wanted: str, store: Store) -> BaselineRun | None:
    """The run that `baseline:` names; None if that is the last good run and there is none yet.

    Args:
        home: the folder of the pipeline's runs.
        wanted: `latest`, a run of this pipeline, or `pipeline/run` of another in the same folder.

    Raises `ValueError` if there is no such run, or its record is damaged.
    """
    if wanted == "none":
        return None
    folder = home / wanted if "/" not in wanted else home.parent / wanted
    if not (folder / RUN).exists():
        if wanted == LATEST:
            return None
        raise ValueError(f"baseline: there is no run {wanted} in {folder.parent}")
    return BaselineRun(RunRecord.read(folder), store)
