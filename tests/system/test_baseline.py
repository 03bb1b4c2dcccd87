"""Tonight's run compared with last night's: a planted regression is caught, and no difference is
reported where nothing changed."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

JOB = """\
name: nightly
seed: 5
variables: {data: good.tsv}
stages:
  rows:
    use: ingest
    source: {train: "${data}", valid: valid.tsv, test: test.tsv}
    columns: {text: source, target: target}
    deduplicate: none
  text: {records: rows, vocabulary: {size: 20, shared: true}}
  train:
    features: text
    model: {use: transformer, layers: 1, width: 64, heads: 4, dropout: 0.0}
    steps: 120
    batch_tokens: 2000
    optimizer: muon
    schedule: cosine
    warmup: 20
    learning_rate: 0.01
    validate_every: 60
    precision: fp32
  export: {model: train, features: text, parity_rows: 10}
  generate: {graphs: export, features: text}
  score:
    predictions: generate
    metrics: [bleu, exact_match, token_accuracy]
  report: {scores: score}
gates:
  - bleu not significantly below baseline (p < 0.05)
  - exact_match:translate not significantly below baseline
  - rejected share <= 1%
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copying digits; in a second file the targets of a fifth of the training rows are shuffled."""
    folder = tmp_path_factory.mktemp("nightly")
    source = random.Random(3)
    rows: dict[str, None] = {}
    while len(rows) < 1500:
        rows[" ".join(source.choices("0123456789", k=source.randint(3, 6)))] = None
    texts = list(rows)

    def write(name: str, pairs: list[tuple[str, str]]) -> None:
        lines = ["source\ttarget", *map("\t".join, pairs)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    pairs = [(text, text) for text in texts]
    planted = sorted(source.sample(range(1200), 240))
    moved = source.sample(planted, len(planted))
    shuffled = {row: texts[other] for row, other in zip(planted, moved, strict=True)}
    write("good.tsv", pairs[:1200])
    write("bad.tsv", [(text, shuffled.get(n, text)) for n, text in enumerate(texts[:1200])])
    write("valid.tsv", pairs[1200:1250])
    write("test.tsv", pairs[1250:])
    path = folder / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def test_a_planted_regression_fails_its_gate(
    job: Path, run_pipeline: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    runs = job.parent / "runs"
    home = runs / "nightly"
    arguments = (job, "--runs-dir", runs)
    first = run_pipeline(*arguments)
    assert "passed, because there is no baseline yet" in first.stdout + first.stderr
    good = (home / "latest").resolve()

    run_pipeline(*arguments)
    again = (home / "latest").resolve()
    assert again != good
    record = json.loads((again / "run.json").read_text())
    assert record["baseline"] == f"nightly/{good.name}"
    assert {facts["status"] for facts in record["stages"].values()} == {"cached"}
    assert len(record["comparison"]) == 3
    for entry in record["comparison"]:
        assert entry["difference"] == 0 and entry["ci95"] == [0, 0] and entry["changed"] == 0
        assert entry["p"] == entry["p_bootstrap"] == 1
    assert (
        "no difference in translate, test (250 rows)"
        in (again / "report" / "report.md").read_text()
    )

    run_pipeline(*arguments, "--set", "variables.data=bad.tsv", code=3)
    assert (home / "latest").resolve() == again
    (planted,) = {path.parent for path in home.glob("2*/run.json")} - {good, again}
    record = json.loads((planted / "run.json").read_text())
    assert record["status"] == "gate failed"
    whole = {entry["metric"]: entry for entry in record["comparison"] if not entry["slice"]}
    assert whole["exact_match"]["difference"] < 0
    assert whole["exact_match"]["p"] < 0.05
    assert whole["exact_match"]["common"] == whole["exact_match"]["n"] == 250
    assert all((runs / facts["artifact"]).exists() for facts in record["stages"].values())
    gates = ElementTree.parse(planted / "gates.xml").getroot()
    failures = [case.get("name") for case in gates if case.find("failure") is not None]
    assert "exact_match:translate not significantly below baseline" in failures
    assert gates.get("failures") == str(len(failures)) and gates.get("tests") == "3"
    assert "worse" in (planted / "report" / "index.html").read_text()


def test_a_run_to_compare_with_is_named(
    job: Path, run_pipeline: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Runs after the test above, and compares with its runs."""
    runs = job.parent / "runs"
    names = sorted(path.parent.name for path in (runs / "nightly").glob("2*/run.json"))
    arguments = (job, "--runs-dir", runs, "--set")
    run_pipeline(*arguments, f"baseline=nightly/{names[0]}")
    latest = json.loads((runs / "nightly" / "latest" / "run.json").read_text())
    assert latest["baseline"] == f"nightly/{names[0]}"
    failed = run_pipeline(*arguments, "baseline=yesterday", code=1)
    assert "baseline: there is no run yesterday" in failed.stdout + failed.stderr
    run_pipeline(*arguments, "baseline=none")
    assert json.loads((runs / "nightly" / "latest" / "run.json").read_text())["comparison"] == []
