"""The run that another is measured against, and its results as far as they are still there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stage import Stage
from pipelines.store.artifacts import Artifact, read_artifact

LATEST = "latest"


@dataclass(frozen=True)
class BaselineRun:
    """A finished run: what it was, and where the results of its stages are."""

    record: dict[str, Any]
    runs_dir: Path

    @property
    def name(self) -> str:
        return f"{self.record['pipeline']}/{self.record['run']}"

    def artifact(self, stage: str, kind: str) -> Artifact | None:
        facts = self.record["stages"].get(stage, {})
        if facts.get("kind") != kind:
            return None
        return read_artifact(self.runs_dir / facts["artifact"])

    def compare(self, stages: dict[str, tuple[Stage, Artifact]]) -> list[dict[str, Any]]:
        """Every stage's scores beside those that the stage of that name made in this run."""
        found = []
        for name, (stage, artifact) in stages.items():
            theirs = self.artifact(name, artifact.kind)
            if theirs is not None:
                found += stage.compare(artifact, theirs)
        return found


def find_baseline(home: Path, wanted: str) -> BaselineRun | None:
    """The run meant by `baseline:`, None where it is the last good run and there is none yet.

    Args:
        home: the folder of the pipeline's runs.
        wanted: `latest`, a run of this pipeline, or `pipeline/run` of another in the same folder.

    Raises `ValueError` where there is no such run.
    """
    if wanted == "none":
        return None
    folder = home / wanted if "/" not in wanted else home.parent / wanted
    path = folder / "run.json"
    if not path.exists():
        if wanted == LATEST:
            return None
        raise ValueError(f"baseline: there is no run {wanted} in {folder.parent}")
    return BaselineRun(json.loads(path.read_text(encoding="utf-8")), home.parent)
