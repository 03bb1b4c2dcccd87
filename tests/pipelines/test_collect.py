from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.finished.collect import main
from pipelines.store.artifacts import Store, lock


def record(runs: Path, run: str, artifact: Path) -> None:
    folder = runs / "p" / run
    folder.mkdir(parents=True)
    stage = {"status": "ran", "reason": "NEW", "artifact": str(artifact.relative_to(runs))}
    facts = {
        "pipeline": "p", "run": run, "started": "2026-01-01T00:00:00+00:00", "status": "complete",
        "seed": 0, "machine": {"platform": "x", "cpus": 1, "python": "3.11", "version": "0"},
        "stages": {"s": stage, "other": {"status": "skipped", "reason": "not selected"}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    store = Store(tmp_path / "store")
    for number, letter in enumerate("abc"):
        (store.workspace("s", letter * 64) / "output" / "x").write_text(letter)
        artifact = store.publish(
            "s", letter * 64, kind="k", parts={}, rows=0, rejected={}, properties={},
            versions={}, measured={"seconds": 0},
        )  # fmt: skip
        record(tmp_path, f"2026-{number}", artifact.folder)
    (tmp_path / "p" / ".lock").touch()
    return tmp_path


def left(runs: Path) -> list[str]:
    return sorted(path.name[2] for path in (runs / "store" / "artifacts").iterdir())


def test_last_runs_and_latest_are_kept(runs: Path) -> None:
    (runs / "p" / "latest").symlink_to("2026-0")
    assert main([str(runs), "--keep", "1"]) == 0
    assert left(runs) == ["a", "c"]


@pytest.mark.parametrize("text", ["{", '{"pipeline": "p"}', '{"format": 99}'])
def test_nothing_is_removed_where_a_record_cannot_be_read(
    runs: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "p" / "2026-2" / "run.json").write_text(text)
    assert main([str(runs), "--keep", "1"]) == 1
    assert "nothing was removed" in capsys.readouterr().err
    assert left(runs) == ["a", "b", "c"]


def test_nothing_is_removed_under_a_running_pipeline(runs: Path) -> None:
    with lock(runs / "p" / ".lock"):
        assert main([str(runs), "--keep", "1"]) == 75
    assert left(runs) == ["a", "b", "c"]
