"""Reasons to run, compared with a finished job: CONFIG, INPUT, CODE and LIBRARY."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.planning import fingerprint
from pipelines.planning.planner import PlanError
from pipelines.planning.selection import Selection, plan
from pipelines.reading.spec import load_pipeline
from pipelines.store.runs_dir import RunsDir
from stages.score.stage import Score


def reasons(finished: tuple[Path, Path], *settings: str) -> dict[str, str]:
    job, runs = finished
    decisions = plan(load_pipeline(job, settings), RunsDir(runs), Selection())
    return {d.stage: d.reason for d in decisions if d.action == "run"}


def test_nothing_changed(finished: tuple[Path, Path]) -> None:
    assert reasons(finished) == {}


def test_another_version_of_a_library(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = fingerprint._version

    def version(name: str) -> str | None:
        return "99.0" if name == "sacrebleu" else installed(name)

    monkeypatch.setattr(fingerprint, "_version", version)
    rerun = reasons(finished)
    assert rerun["train"].startswith('LIBRARY sacrebleu: "2.6.0" → "99.0"')
    assert "text" not in rerun


def test_a_library_that_is_not_installed(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_version", lambda name: None)
    with pytest.raises(PlanError, match="is not installed; pip install"):
        reasons(finished)


def test_another_version_of_a_stage(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Score, "version", 2)
    rerun = reasons(finished)
    assert rerun["score"] == "CONFIG stage.version: 1 → 2"
    assert list(rerun) == ["score", "report"]


def test_options_and_seed(finished: tuple[Path, Path]) -> None:
    assert reasons(finished, "train.model.width=64")["train"] == "CONFIG model.width: 32 → 64"
    assert list(reasons(finished, "report.examples=3")) == ["report"]
    # The data does not depend on the seed, so it is not made again for another one.
    assert next(iter(reasons(finished, "seed=9"))) == "train"


def test_a_damaged_result_is_made_again(finished: tuple[Path, Path]) -> None:
    _, runs = finished
    (scores,) = (runs / "store" / "artifacts").glob("score-*/scores.json")
    content = scores.read_bytes()
    try:
        scores.write_bytes(content[:-5])
        assert reasons(finished)["score"].startswith("DAMAGED: in score-")
    finally:
        scores.write_bytes(content)
