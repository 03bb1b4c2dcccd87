from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.finished.collect import main
from pipelines.store.artifacts import Store, lock


def record(runs: Path, run: str, artifact: Path) -> None:
    folder = runs / "p" / run
    folder.mkdir(parents=True)
    facts = {"s": {"artifact": str(artifact.relative_to(runs))}, "skipped": {}}
    (folder / "run.json").write_text(json.dumps({"stages": facts}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    store = Store(tmp_path / "store")
    for number, letter in enumerate("abc"):
        (store.workspace("s", letter * 64) / "output" / "x").write_text(letter)
        made = store.publish(
            "s", letter * 64, kind="k", parts={}, rows=0, rejected={}, properties={},
            versions={}, measured={"seconds": 0},
        )  # fmt: skip
        record(tmp_path, f"2026-{number}", made.folder)
    (tmp_path / "p" / ".lock").touch()
    return tmp_path


def left(runs: Path) -> list[str]:
    return sorted(path.name[2] for path in (runs / "store" / "artifacts").iterdir())


def test_last_runs_and_latest_are_kept(runs: Path) -> None:
    (runs / "p" / "latest").symlink_to("2026-0")
    assert main([str(runs), "--keep", "1"]) == 0
    assert left(runs) == ["a", "c"]


def test_nothing_is_removed_under_a_running_pipeline(runs: Path) -> None:
    with lock(runs / "p" / ".lock"):
        assert main([str(runs), "--keep", "1"]) == 75
    assert left(runs) == ["a", "b", "c"]
