from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.finished.collect import main
from pipelines.store.artifacts import Store
from pipelines.store.leases import lock


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


def test_nothing_is_removed_where_a_later_version_wrote_a_record(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "p" / "2026-2" / "run.json").write_text('{"format": 99}')
    assert main([str(runs), "--keep", "1"]) == 1
    assert "later version" in capsys.readouterr().err
    assert left(runs) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pipeline": "p"}', "[" * 5000, "\0"])
def test_a_damaged_record_is_told_and_passed_over(
    runs: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "p" / "2026-2" / "run.json").write_text(text)
    assert main([str(runs), "--keep", "1"]) == 0
    assert "passed over" in capsys.readouterr().err
    assert left(runs) == ["b"], "the last run whose record can be read keeps its results"


def test_what_another_process_uses_is_kept_and_its_pipeline_too(runs: Path) -> None:
    user = Store(runs / "store")
    user.hold("a" * 64)
    with lock(runs / "p" / ".lock"):
        assert main([str(runs), "--keep", "1", "--runs"]) == 0
    assert left(runs) == ["a", "c"]
    assert len(list(runs.glob("p/*/run.json"))) == 3, "the pipeline was running"
    user.release()
    assert main([str(runs), "--keep", "1", "--runs"]) == 0
    assert left(runs) == ["c"]
    assert [path.parent.name for path in runs.glob("p/*/run.json")] == ["2026-2"]


def test_leases_go_with_their_artifacts(runs: Path) -> None:
    store = Store(runs / "store")
    for letter in "abcd":
        store.hold(letter * 64)
    store.release()
    assert main([str(runs), "--keep", "1"]) == 0
    assert {path.name[0] for path in (runs / "store" / "leases").iterdir()} == {"c"}


def test_what_a_stopped_run_can_resume_stays_unless_asked(runs: Path) -> None:
    store = Store(runs / "store")
    mine, old = (store.workspace("s", letter * 64) for letter in "de")
    path = runs / "p" / "2026-2" / "run.json"
    facts = json.loads(path.read_text()) | {"status": "stopped", "unfinished": mine.name}
    path.write_text(json.dumps(facts))
    assert main([str(runs), "--keep", "1"]) == 0
    assert mine.exists() and not old.exists()
    assert main([str(runs), "--keep", "1", "--unfinished"]) == 0
    assert not mine.exists() and left(runs) == ["c"]


def test_what_does_not_belong_there_stops_nothing(runs: Path) -> None:
    (runs / "store" / "work").mkdir(exist_ok=True)
    for name in ("work/.DS_Store", "work/note.txt", "artifacts/note.txt", "measured/note.txt"):
        (runs / "store" / name).write_text("x")
    (runs / "store" / "leases" / "folder").mkdir(parents=True)
    for _ in range(2):
        assert main([str(runs), "--keep", "1"]) == 0
    assert not list((runs / "store").glob(".removed*"))
    assert (runs / "store" / "work" / "note.txt").exists()
