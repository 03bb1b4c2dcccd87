"""The documentation is correct: the table of options, the example stage, the examples.

`make docs` checks its links."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.reading.spec import load_pipeline
from pipelines.reference import written


def test_the_table_of_stages_is_the_codes(root: Path) -> None:
    text = (root / "docs" / "options.md").read_text(encoding="utf-8")
    assert text == written(text), "run: python -m pipelines.reference --write docs/options.md"


def test_an_artifact_is_opened_as_contributors_are_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    frozen = root / "tests" / "golden" / "0.1.0"
    exec(code.replace('"runs"', repr(str(frozen))).replace('"gemini"', '"golden"'), {})
    printed = capsys.readouterr().out
    assert "predictions 46" in printed and "shape: (46, 23)" in printed


@pytest.mark.parametrize(
    "name",
    [
        "pipeline.yaml",
        "examples/own-data.yaml",
        "examples/gettext.yaml",
        "examples/lstm.yaml",
        "examples/zh-en.yaml",
        "examples/wishes.yaml",
        "examples/levels.yaml",
        "examples/stamps.yaml",
    ],
)
def test_examples_are_valid(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "examples")
    assert load_pipeline(root / name).stages


@pytest.mark.parametrize("extra", [["--plan"], []])
def test_missing_stamps_are_told_with_the_line_that_installs_them(
    tmp_path: Path, run_pipeline: Callable[..., subprocess.CompletedProcess[str]], extra: list[str]
) -> None:
    errors = run_pipeline(
        "examples/stamps.yaml", "--runs-dir", tmp_path / "runs",
        "--set", f"languages.folder={tmp_path}/none", *extra, code=2 if extra else 1,
    ).stderr  # fmt: skip
    assert "languages: there are no stamps in" in errors
    assert "sudo apt-get install tuxpaint-stamps-default" in errors


def test_own_data_runs(
    root: Path, tmp_path: Path, run_pipeline: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run_pipeline(
        "examples/own-data.yaml", "--runs-dir", tmp_path, "--set", "train.steps=10",
        "--set", "train.validate_every=5",
    )  # fmt: skip
    assert (tmp_path / "own-data" / "latest" / "report" / "index.html").exists()


def test_the_stage_of_the_documentation_runs(
    root: Path, tmp_path: Path, run_pipeline: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    text = (root / "docs" / "stages.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "shouting.py").write_text(code)
    (tmp_path / "a.tsv").write_text("a\tb\n" + "".join(f"word {n}\tmot {n}\n" for n in range(20)))
    (tmp_path / "p.yaml").write_text(
        "name: p\nstages:\n"
        "  rows: {use: ingest, source: a.tsv, columns: {text: a, target: b}, shards: 2}\n"
        "  upper: {use: 'shouting:Upper', records: rows}\n"
        "  text: {records: upper, vocabulary: {size: 40}}\n"
    )
    run_pipeline(tmp_path / "p.yaml", "--runs-dir", tmp_path / "runs")
    plan = run_pipeline(tmp_path / "p.yaml", "--runs-dir", tmp_path / "runs", "--plan").stdout
    assert plan.count("cached") == 3
    (tmp_path / "shouting.py").write_text(code.replace("to_uppercase", "to_titlecase"))
    plan = run_pipeline(tmp_path / "p.yaml", "--runs-dir", tmp_path / "runs", "--plan").stdout
    assert "CODE shouting.py" in plan
