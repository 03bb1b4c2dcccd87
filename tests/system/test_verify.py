"""Stored bytes are checked: one changed bit anywhere in the store is named and made again."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.finished.verify import main
from pipelines.store.artifacts import Store, read_artifact

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A job that has run, whose store can be damaged."""
    job, runs = finished
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    return job, tmp_path / "runs"


def flip(path: Path, bit: int) -> None:
    """Changes one bit and leaves size and time of change as they were."""
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def stored(runs: Path) -> list[Path]:
    return sorted(path for path in runs.glob("store/artifacts/*/**/*") if path.is_file())


def test_every_file_of_the_store_is_checked(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, runs = copied
    assert main([str(runs)]) == 0
    assert "7 results, 0 problems" in capsys.readouterr().out
    moments = random.Random(3)
    for path in stored(runs)[::4]:
        for _ in range(3 if path.name == "manifest.json" else 1):
            bit = moments.randrange(8 * path.stat().st_size) if path.stat().st_size else None
            if bit is None:
                continue
            flip(path, bit)
            assert main([str(runs)]) == 1, f"bit {bit} of {path}"
            out = capsys.readouterr().out
            assert path.parent.name in out or path.name in out
            assert "0 problems" not in out
            flip(path, bit)
    assert main([str(runs)]) == 0


def test_no_bit_of_a_manifest_can_change(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, runs = finished
    (source,) = runs.glob("store/artifacts/score-*/manifest.json")
    shutil.copytree(source.parent, tmp_path / "store" / "artifacts" / source.parent.name)
    store = Store(tmp_path / "store")
    (folder,) = store.artifacts()
    path = folder / "manifest.json"
    size = 8 * path.stat().st_size
    for bit in random.Random(5).sample(range(size), 400):
        flip(path, bit)
        try:
            artifact = read_artifact(folder)
        except ValueError:
            artifact = None
        assert artifact is None or not artifact.sealed, f"bit {bit}"
        flip(path, bit)
    artifact = read_artifact(folder)
    assert artifact is not None and not list(store.problems(artifact))


@pytest.mark.parametrize(
    "stage",
    ["rows", *(pytest.param(name, marks=pytest.mark.long) for name in ("text", "train", "export"))],
)
def test_a_changed_bit_is_named_and_the_stage_made_again(
    copied: tuple[Path, Path], run_pipeline: Run, stage: str
) -> None:
    job, runs = copied
    largest = max(
        runs.glob(f"store/artifacts/{stage}-*/**/*"), key=lambda path: path.stat().st_size
    )
    before = {path: path.read_bytes() for path in stored(runs)}
    flip(largest, 4001)
    planned = run_pipeline(job, "--runs-dir", runs, "--plan").stdout
    (line,) = (line for line in planned.splitlines() if line.startswith(stage))
    assert "DAMAGED: in" in line and f"{largest.name} is not as it was stored" in line
    run_pipeline(job, "--runs-dir", runs)
    assert {path: path.read_bytes() for path in stored(runs)} == before
    told: dict[str, Any] = json.loads((runs / "small" / "latest" / "run.json").read_text())
    ran = [name for name, facts in told["stages"].items() if facts["status"] == "ran"]
    assert ran == [stage]


def test_verify_makes_the_next_run_look_again(copied: tuple[Path, Path], run_pipeline: Run) -> None:
    """A disk that returns other bytes changes no time; `verify` reads all the same."""
    job, runs = copied
    run_pipeline(job, "--runs-dir", runs)
    (weights,) = runs.glob("store/artifacts/train-*/weights.safetensors")
    key = f"store:{weights.parent.name}/{weights.name}"
    right = weights.read_bytes()
    flip(weights, 4001)
    # As if the identity had stayed the same.
    manifest = read_artifact(weights.parent)
    assert manifest is not None
    (digest,) = (file.sha256 for file in manifest.manifest.files if file.path == weights.name)
    Store(runs / "store").memory.remember(str(weights), digest, key)
    assert "train   cached" in run_pipeline(job, "--runs-dir", runs, "--plan").stdout.replace(
        "train     cached", "train   cached"
    )
    verified = subprocess.run(
        [sys.executable, "-m", "pipelines.verify", str(runs)], capture_output=True, text=True
    )
    assert verified.returncode == 1 and "weights.safetensors is not as it was" in verified.stdout
    run_pipeline(job, "--runs-dir", runs)
    assert weights.read_bytes() == right


@pytest.mark.parametrize(
    "foreign",
    ["file", "link", "folder of links", "pipe", "folder", "linked manifest", "other name"],
)
def test_what_was_not_stored_is_not_read(
    copied: tuple[Path, Path], run_pipeline: Run, foreign: str
) -> None:
    job, runs = copied
    (rows,) = runs.glob("store/artifacts/rows-*/rows")
    first = sorted(rows.iterdir())[0]
    if foreign == "file":
        shutil.copy(first, rows / "00009-of-00009.parquet")
    elif foreign == "link":
        first.rename(runs / "elsewhere.parquet")
        first.symlink_to(runs / "elsewhere.parquet")
    elif foreign == "pipe":  # whoever opens it waits for ever
        os.mkfifo(rows / "00009-of-00009.parquet")
    elif foreign == "folder":
        (rows / "00009-of-00009.parquet").mkdir()
    elif foreign == "linked manifest":
        (rows.parent / "manifest.json").rename(runs / "elsewhere.json")
        (rows.parent / "manifest.json").symlink_to(runs / "elsewhere.json")
    elif foreign == "other name":
        (other,) = runs.glob("store/artifacts/text-*")
        shutil.rmtree(rows.parent)
        shutil.copytree(other, rows.parent)
    else:
        (rows.parent / "more").symlink_to("/etc")
    assert main([str(runs)]) == 1
    planned = run_pipeline(job, "--runs-dir", runs, "--plan").stdout
    assert "DAMAGED" in planned


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 9000, '{"seconds": "x", "format": "y"}'])
@pytest.mark.parametrize("file", ["measured", "run", "manifest"])
def test_damaged_state_is_survived_by_every_command(
    tiny_job: Path, run_pipeline: Run, root: Path, file: str, text: str
) -> None:
    runs = tiny_job.parent / "runs"
    run_pipeline(tiny_job, "--runs-dir", runs)
    path = {
        "measured": next(runs.glob("store/measured/first-*.json")),
        "run": (runs / "job" / "latest").resolve() / "run.json",
        "manifest": next(runs.glob("store/artifacts/second-*/manifest.json")),
    }[file]
    path.write_text(text)
    for command in (["report", runs], ["collect", runs, "--keep", "1"], ["verify", runs]):
        completed = subprocess.run(
            [sys.executable, "-m", f"pipelines.{command[0]}", *map(str, command[1:])],
            cwd=root, capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" not in completed.stderr, completed.stderr
        assert completed.returncode in (0, 1, 2)
    run_pipeline(tiny_job, "--runs-dir", runs, "--plan")
    assert "Traceback" not in run_pipeline(tiny_job, "--runs-dir", runs).stderr


def test_weights_and_graphs_are_checked_when_they_are_loaded(
    copied: tuple[Path, Path],
) -> None:
    from exports.decoding.session import SessionStepper
    from model.saved.folder import load_model

    _, runs = copied
    (trained,), (exported,) = (
        runs.glob(f"store/artifacts/{name}-*") for name in ("train", "export")
    )
    load_model(trained)
    SessionStepper(exported)
    for path in (trained / "weights.safetensors", exported / "step.onnx"):
        flip(path, 8 * path.stat().st_size - 77)
    with pytest.raises(ValueError, match=r"weights\.safetensors is not as it was stored"):
        load_model(trained)
    with pytest.raises(ValueError, match=r"step\.onnx is not as it was stored"):
        SessionStepper(exported)
    (trained / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        load_model(trained)
