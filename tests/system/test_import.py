"""A Marian checkpoint in place of training: exported, decoded, scored, and trained further."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

Run = Callable[..., subprocess.CompletedProcess[str]]

JOB = """\
name: opus
seed: 2
stages:
  rows:
    use: ingest
    source: rows.tsv
    columns: {text: source, target: target}
    split: {valid: 8, test: 8}
  marian: {use: import, folder: marian}
  text: {records: rows, model: marian, filter: {max_ratio: null}}
  tuned: {use: train, features: text, start: marian, steps: 40, warmup: 5, learning_rate: 0.003}
  graphs: {use: export, model: marian, features: text}
  better: {use: export, model: tuned, features: text}
  output: {use: generate, graphs: graphs, features: text}
  improved: {use: generate, graphs: better, features: text}
  scores: {use: score, predictions: improved}
  report: {use: report, scores: scores}
"""


@pytest.fixture
def job(tmp_path: Path, marian: Any) -> Path:
    folder = marian.save(tmp_path / "marian")
    words = " ".join(marian.sources).split()
    pairs = zip(words * 12, (words[1:] + words[:1]) * 12, strict=True)
    lines = [f"{a} {b} {n}\t{marian.targets[n % 4]}" for n, (a, b) in enumerate(pairs)]
    (tmp_path / "rows.tsv").write_text("source\ttarget\n" + "\n".join(lines) + "\n")
    assert folder.is_dir()
    path = tmp_path / "opus.yaml"
    path.write_text(JOB)
    return path


def test_an_imported_model_serves_and_learns(job: Path, run_pipeline: Run, marian: Any) -> None:
    import transformers

    runs = job.parent / "runs"
    run_pipeline(job, "--runs-dir", runs)
    record = json.loads((runs / "opus" / "latest" / "run.json").read_text())
    folders = {name: runs / facts["artifact"] for name, facts in record["stages"].items()}

    def predictions(stage: str) -> pl.DataFrame:
        return pl.concat([pl.read_parquet(p) for p in folders[stage].glob("rows/*.parquet")])

    table = predictions("output")
    assert len(table) == 8
    theirs = transformers.MarianMTModel.from_pretrained(job.parent / "marian").eval()
    tokenizer = marian.tokenizer(job.parent / "marian")
    pieces = json.loads((folders["graphs"] / "text" / "pieces.json").read_text())["target"]
    for row in table.iter_rows(named=True):
        batch = tokenizer([row["text"]], return_tensors="pt")
        with torch.no_grad():
            generated = theirs.generate(
                **batch, num_beams=1, do_sample=False, max_new_tokens=len(row["tokens"])
            )
        expected_pieces = tokenizer.convert_ids_to_tokens(generated[0, 1:].tolist())
        assert [pieces[token] for token in row["tokens"]] == expected_pieces

    curve = json.loads((folders["tuned"] / "curve.json").read_text())
    assert curve[-1]["valid_loss"] < 0.8 * curve[0]["train_loss"]
    before, after = (
        float(rows["reference_log_probability"].sum()) for rows in (table, predictions("improved"))
    )
    assert after > 0.8 * before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tuned.model={use: transformer}", "or start: to train one further"),
        ("text.lowercase={source: true}", "model: brings its own lowercase"),
        ("marian.folder=elsewhere", "matches no file"),
    ],
)
def test_what_does_not_go_together(
    job: Path, run_pipeline: Run, setting: str, message: str
) -> None:
    completed = run_pipeline(
        job, "--runs-dir", job.parent / "runs", "--plan", "--set", setting, code=None
    )
    assert completed.returncode in (1, 2)
    assert message in completed.stdout + completed.stderr


def test_records_must_have_the_models_task(job: Path, run_pipeline: Run) -> None:
    completed = run_pipeline(
        job, "--runs-dir", job.parent / "runs", "--set", "marian.task=caption", code=1
    )
    assert (
        "unknown task 'translate'; the model knows caption" in completed.stdout + completed.stderr
    )


@pytest.mark.long  # takes half a minute
def test_int8_needs_rows_to_calibrate_on(job: Path, run_pipeline: Run) -> None:
    rows = len((job.parent / "rows.tsv").read_text().splitlines()) - 1
    untrained = [line for line in JOB.splitlines() if "tuned" not in line and "better" not in line]
    job.write_text("\n".join(untrained).replace("predictions: improved", "predictions: output"))
    settings = (f"rows.split={{valid: 8, test: {rows - 8}}}", "graphs.precision=int8")
    chosen = [part for setting in settings for part in ("--set", setting)]
    completed = run_pipeline(job, "--runs-dir", job.parent / "runs", *chosen, code=1)
    assert "there are no training rows to calibrate int8 on" in completed.stdout + completed.stderr
