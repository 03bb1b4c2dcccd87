"""Whole jobs through the command line, as a user and a scheduler see them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.ingest.options import OWN_COLUMNS, ROW_COLUMNS

Run = Callable[..., subprocess.CompletedProcess[str]]
Record = Callable[[Path], dict[str, Any]]
STAGES = ["rows", "text", "train", "export", "generate", "score", "report"]


def report_of(runs: Path, name: str = "small") -> dict[str, Any]:
    report: dict[str, Any] = json.loads((runs / name / "latest/report/report.json").read_text())
    return report


def statuses(record: dict[str, Any]) -> dict[str, str]:
    return {name: facts["status"] for name, facts in record["stages"].items()}


def test_report_holds_what_it_promises(finished: tuple[Path, Path]) -> None:
    _, runs = finished
    report = report_of(runs)
    assert report["pipeline"] == "small"
    assert list(report["stages"]) == sorted(STAGES)
    for facts in report["stages"].values():
        assert facts["status"] in ("ran", "cached") and facts["reason"]
        assert facts["seconds"] >= 0 and facts["digest"]
    for score in report["scores"]:
        keys = {"task", "split", "slice", "metric", "value", "signature", "n", "ci95"}
        assert score.keys() == keys and score["slice"] is None
        assert score["n"] == 30 and score["split"] == "test"
    folder = runs / "small" / "latest" / "report"
    page = (folder / "index.html").read_text()
    assert "<polyline" in page and "bleu" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must not need other files"
    assert "| translate | test | bleu |" in (folder / "report.md").read_text()


def test_columns_of_stages_are_reserved(finished: tuple[Path, Path]) -> None:
    _, runs = finished
    record = json.loads((runs / "small" / "latest" / "run.json").read_text())["stages"]
    metrics = {score["metric"] for score in report_of(runs)["scores"]}
    for stage in ("rows", "text", "generate", "score"):
        paths = list((runs / record[stage]["artifact"]).glob("rows/*.parquet"))
        assert paths or stage == "score"
        for path in paths:
            written = set(pl.read_parquet_schema(path)) - set(ROW_COLUMNS) - metrics
            assert written <= OWN_COLUMNS, f"{stage} writes a column that ingest would accept"


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_scores_are_those_of_the_sacrebleu_command(
    finished: tuple[Path, Path], metric: str
) -> None:
    _, runs = finished
    texts = runs / "small" / "latest" / "text"
    command = [
        sys.executable, "-m", "sacrebleu", str(texts / "translate.test.ref.txt"),
        "-i", str(texts / "translate.test.hyp.txt"), "-m", metric, "-w", "14", "-f", "json",
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = json.loads(printed)
    reported = next(score for score in report_of(runs)["scores"] if score["metric"] == metric)
    assert f"{reported['value']:.14f}" == f"{expected['score']:.14f}"
    assert reported["signature"] == expected["signature"]


def test_a_second_run_executes_nothing(
    finished: tuple[Path, Path], run_pipeline: Run, read_record: Record
) -> None:
    job, runs = finished
    run_pipeline(job, "--runs-dir", runs)
    assert set(statuses(read_record(runs / "small")).values()) == {"cached"}
    assert (runs / "small" / "latest").resolve().name == read_record(runs / "small")["run"]
    plan = run_pipeline(job, "--runs-dir", runs, "--plan").stdout.splitlines()
    assert [line.split() for line in plan] == [[name, "cached", "unchanged"] for name in STAGES]


@pytest.mark.parametrize("option", ["--plan", "--help"])
def test_start_up_is_light(finished: tuple[Path, Path], root: Path, option: str) -> None:
    job, runs = finished
    code = (
        "import sys\nfrom pipelines.run import main\n"
        f"try:\n    main([{str(job)!r}, '--runs-dir', {str(runs)!r}, {option!r}])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'apache_beam', 'librosa', 'onnxruntime', 'polars', 'numpy'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)


def test_plan_names_what_changed(finished: tuple[Path, Path], run_pipeline: Run) -> None:
    job, runs = finished

    def plan(*settings: str) -> dict[str, str]:
        arguments = [part for setting in settings for part in ("--set", setting)]
        printed = run_pipeline(job, "--runs-dir", runs, "--plan", *arguments).stdout
        return {line.split()[0]: line.split(maxsplit=1)[1] for line in printed.splitlines()}

    changed = plan("score.metrics=[bleu]")
    assert changed["generate"].startswith("cached")
    assert "CONFIG metrics" in changed["score"]
    assert "INPUT score will run first" in changed["report"]
    assert "CONFIG seed: 5 → 6" in plan("seed=6")["train"]
    assert plan("seed=6")["text"].startswith("cached")
    assert plan("beam.direct_num_workers=2")["text"].startswith("cached")


def test_changed_input_is_named(
    tmp_path: Path, small_job: Callable[..., Path], run_pipeline: Run
) -> None:
    job = small_job(tmp_path)
    run_pipeline(job, "--runs-dir", tmp_path / "runs", "--to", "text")
    with (tmp_path / "copy.tsv").open("a") as file:
        file.write("1 2 3 4 5 6 7 8 9\t1 2 3 4 5 6 7 8 9\n")
    printed = run_pipeline(job, "--runs-dir", tmp_path / "runs", "--plan").stdout
    assert re.search(r"rows +run +INPUT copy.tsv", printed)


def test_only_what_uses_changed_code_runs_again(
    finished: tuple[Path, Path], tmp_path: Path, root: Path, read_record: Record
) -> None:
    """In a copy of the repository, so that its code can be changed."""
    job, runs = finished
    for package in ("pipelines", "stages", "model", "exports"):
        shutil.copytree(root / package, tmp_path / package)
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)

    def run(*arguments: str) -> str:
        command = [
            sys.executable,
            "-m",
            "pipelines.run",
            str(job),
            "--runs-dir",
            "runs",
            *arguments,
        ]
        completed = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    assert all(line.split()[1] == "cached" for line in run("--plan").splitlines())
    for file in (
        "stages/measures/statistics.py",
        "stages/train.py",
        "model/networks/layers.py",
        "pipelines/running/beam_jobs.py",
    ):
        path = tmp_path / file
        path.write_text(path.read_text() + "\n# a comment\n")
    assert all(line.split()[1] == "cached" for line in run("--plan").splitlines())

    scoring = tmp_path / "stages/measures/statistics.py"
    text = scoring.read_text()
    assert "return part / whole if whole else math.nan" in text
    scoring.write_text(text.replace("return part / whole", "return 2 * part / whole"))
    plan = {line.split()[0]: line for line in run("--plan").splitlines()}
    assert "CODE stages/measures/statistics.py" in plan["score"]
    assert [name for name, line in plan.items() if line.split()[1] == "run"] == ["score", "report"]
    run()
    ran = [n for n, s in statuses(read_record(tmp_path / "runs/small")).items() if s == "ran"]
    assert sorted(ran) == ["report", "score"]


def test_force_only_from_and_to(
    finished: tuple[Path, Path], tmp_path: Path, run_pipeline: Run, read_record: Record
) -> None:
    job, finished_runs = finished
    runs = tmp_path / "runs"
    shutil.copytree(finished_runs, runs, symlinks=True)
    run_pipeline(job, "--runs-dir", runs, "--force", "score")
    record = read_record(runs / "small")
    assert [name for name, status in statuses(record).items() if status == "ran"] == ["score"]
    assert record["stages"]["score"]["reason"] == "FORCED by --force"
    shutil.rmtree(runs / "store" / "artifacts")
    completed = run_pipeline(job, "--runs-dir", runs, "--only", "score", code=1)
    assert "neither cached nor selected to run" in completed.stderr
    run_pipeline(job, "--runs-dir", runs, "--to", "text")
    assert statuses(read_record(runs / "small"))["train"] == "skipped"
    plan = run_pipeline(job, "--runs-dir", runs, "--from", "train", "--plan").stdout
    assert plan.split()[:2] == ["rows", "cached"]
    assert "train     run" in plan
    completed = run_pipeline(job, "--runs-dir", runs, "--only", "scores", code=2)
    assert 'did you mean "score"?' in completed.stderr


def test_gates_decide_the_exit_code_and_latest(
    finished: tuple[Path, Path], tmp_path: Path, run_pipeline: Run, read_record: Record
) -> None:
    job, finished_runs = finished
    runs = tmp_path / "runs"
    shutil.copytree(finished_runs, runs, symlinks=True)
    latest = (runs / "small" / "latest").resolve().name
    completed = run_pipeline(job, "--runs-dir", runs, "--set", "gates=[bleu >= 101]", code=3)
    assert "gate bleu >= 101: FAILED" in completed.stderr
    record = read_record(runs / "small")
    assert record["status"] == "gate failed" and not record["gates"][0]["passed"]
    assert (runs / "small" / "latest").resolve().name == latest
    assert (runs / "small" / record["run"] / "report" / "index.html").exists()
    run_pipeline(job, "--runs-dir", runs, "--set", "gates=[bleu >= 0]")


def test_a_wrong_file_exits_2_and_makes_nothing(tmp_path: Path, run_pipeline: Run) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: p\nstages:\n  a: {use: ingset}\n")
    completed = run_pipeline(path, "--runs-dir", tmp_path / "runs", code=2)
    assert f"{path}:3: a: unknown stage 'ingset'; did you mean \"ingest\"?" in completed.stderr
    assert not (tmp_path / "runs").exists()


def test_a_failure_says_how_to_go_on(
    tmp_path: Path, small_job: Callable[..., Path], run_pipeline: Run, read_record: Record
) -> None:
    job, runs = small_job(tmp_path), tmp_path / "runs"
    completed = run_pipeline(job, "--runs-dir", runs, "--set", "text.vocabulary.size=5", code=1)
    assert "text failed: SentencePiece cannot make a vocabulary of 5" in completed.stderr
    command = completed.stderr.strip().splitlines()[-1]
    assert command == (
        f"to continue from here: python -m pipelines.run {job} --set text.vocabulary.size=5 "
        f"--runs-dir {runs}"
    )
    record = read_record(runs / "small")
    assert record["status"] == "failed" and record["exit_code"] == 1
    assert not list(runs.glob("store/artifacts/text-*"))


def start(root: Path, job: Path, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.run", str(job), "--runs-dir", str(runs), *arguments]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_cleanly_and_a_second_run_is_locked_out(
    tmp_path: Path,
    root: Path,
    small_job: Callable[..., Path],
    run_pipeline: Run,
    read_record: Record,
    number: signal.Signals,
    code: int,
) -> None:
    job, runs = small_job(tmp_path, steps=100_000), tmp_path / "runs"
    process = start(root, job, runs)
    wait_for(lambda: list(runs.glob("store/work/train-*/scratch/checkpoint.safetensors")))
    locked = run_pipeline(job, "--runs-dir", runs, code=75)
    assert "another run of pipeline 'small'" in locked.stderr
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert f"stopped by {number.name} in train" in errors
    assert "to continue from here: python -m pipelines.run" in errors
    record = read_record(runs / "small")
    assert record["status"] == "stopped"
    assert not (runs / "small" / "latest").exists()


@pytest.mark.long  # as are a hundred pairs of runs
def test_two_pipelines_share_a_store(
    tmp_path: Path, root: Path, small_job: Callable[..., Path], read_record: Record
) -> None:
    runs = tmp_path / "runs"
    first_job, second_job = small_job(tmp_path, "one"), small_job(tmp_path, "two")
    processes = [start(root, job, runs) for job in (first_job, second_job)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    ran = [
        [name for name, status in statuses(read_record(runs / job)).items() if status == "ran"]
        for job in ("one", "two")
    ]
    assert sorted(ran[0] + ran[1]) == sorted(STAGES), "each stage ran once, in one of the two"
