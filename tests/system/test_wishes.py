"""A whole job learns a wish from what a judge says of its targets, and meets it; so do the graphs
alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

JOB = """\
name: wishes
seed: 5
beam: {direct_num_workers: 1}
stages:
  rows:
    use: ingest
    source: rows.tsv
    columns: {text: source, target: target, wanted: wanted}
    judge: {tone: {patterns: {loud: "!$", calm: ""}}, size: {by: "judging:size"}}
    split: {valid: 20, test: 30}
  text: {records: rows, vocabulary: {size: 30, shared: true}}
  train:
    features: text
    model: {use: transformer, layers: 1, width: 32, heads: 2, feed_forward: 64, dropout: 0}
    steps: 250
    batch_tokens: 600
    optimizer: muon
    learning_rate: 0.01
    schedule: cosine
    warmup: 10
    validate_every: 250
    select: loss
    precision: fp32
    wishes: {tone: {column: tone}}
  export: {model: train, features: text}
  generate:
    graphs: export
    features: text
    wish: {tone: {column: wanted}, strength: 2}
    score_references: false
    tradeoff: {rows: 30, strengths: [2, 0.5], draws: 2}
    diversity: {rows: 30, samples: 2, draws: 2, sampling: [0.5], variety: [0.3]}
    prompts: ["3 4 5"]
  score:
    predictions: generate
    judges: {tone: {patterns: {loud: "!$", calm: ""}}}
    slices: [wish.tone, size]
  report: {scores: score}
gates: [wish >= 0.9]
"""
JUDGE = '''
def size(text):
    """Whether there are more than eight signs."""
    return None if text.startswith("9") else "long" if len(text) > 8 else "short"
'''


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, run_pipeline: Run) -> Path:
    """A finished job: targets repeat their sources, and half of them end with an exclamation
    mark, which nothing in the source tells."""
    folder = written(tmp_path_factory.mktemp("wishes"))
    run_pipeline(folder / "job.yaml", "--runs-dir", folder / "runs")
    return folder


def written(folder: Path) -> Path:
    source = random.Random(1)
    lines = ["source\ttarget\twanted"]
    for number in range(400):
        words = " ".join(source.choice("0123456789") for _ in range(source.randint(3, 6)))
        words = f"{words} {number}"
        wanted = source.choice(["loud", "calm", "", "loud", "calm", "lout"])
        lines.append(f"{words}\t{words}{source.choice(['!', ''])}\t{wanted}")
    (folder / "rows.tsv").write_text("\n".join(lines) + "\n")
    (folder / "judging.py").write_text(JUDGE)
    (folder / "job.yaml").write_text(JOB)
    return folder


def folder_of(job: Path, stage: str) -> Path:
    record: dict[str, Any] = json.loads((job / "runs/wishes/latest/run.json").read_text())
    return job / "runs" / record["stages"][stage]["artifact"]


def rows_of(job: Path, stage: str) -> pl.DataFrame:
    paths = sorted((folder_of(job, stage) / "rows").glob("*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in paths], how="diagonal").sort("id")


def test_judges_write_what_they_say_into_records(job: Path) -> None:
    rows = rows_of(job, "rows")
    assert set(rows["tone"]) == {"loud", "calm"}
    for row in rows.iter_rows(named=True):
        assert row["tone"] == ("loud" if row["target"].endswith("!") else "calm")
        target = row["target"]
        size = None if target.startswith("9") else "long" if len(target) > 8 else "short"
        assert row["size"] == size


def test_outputs_are_what_each_row_wished(job: Path) -> None:
    rows = rows_of(job, "generate")
    wished = rows.filter(pl.col("wish.tone").is_not_null())
    assert wished["wish.tone"].to_list() == wished["wanted"].to_list()
    assert set(rows.filter(pl.col("wish.tone").is_null())["wanted"]) <= {None, ""}
    loud = wished["hypothesis"].str.ends_with("!") == (wished["wish.tone"] == "loud")
    scores = json.loads((folder_of(job, "score") / "scores.json").read_text())
    (whole,) = [s for s in scores if s["metric"] == "wish" and not s.get("slice")]
    assert whole["value"] == pytest.approx(loud.mean())
    assert "tone of column wanted by loud '!$', calm ''" in whole["signature"]
    slices = {tuple(s["slice"].items()) for s in scores if s["metric"] == "wish" and s.get("slice")}
    assert {(("wish.tone", "loud"),), (("wish.tone", "calm"),)} <= slices


def test_rows_that_wish_for_what_nobody_knows_are_kept_aside(job: Path) -> None:
    expected = rows_of(job, "rows").filter(pl.col("split") == "test", pl.col("wanted") == "lout")
    assert len(expected)
    rejected = folder_of(job, "generate") / "rejected"
    rows = pl.concat([pl.read_parquet(path) for path in sorted(rejected.glob("*.parquet"))])
    assert set(rows["id"]) == set(expected["id"])
    assert set(rows["reason"]) == {"unknown value of wish tone"}
    assert len(rows_of(job, "generate")) == 30 - len(expected)


def test_the_report_shows_what_wishes_cost(job: Path) -> None:
    entries = json.loads((folder_of(job, "score") / "tradeoff.json").read_text())
    kinds = {(e["value"], e["kind"], e["strength"]) for e in entries}
    assert kinds == {
        (value, kind, strength)
        for value in ("calm", "loud")
        for kind, strengths in (
            ("plain", [0]), ("selected", [0]), ("draws", [0]), ("wish", [0.5, 2]),
            ("ranked", [0.5, 2]),
        )
        for strength in strengths
    }  # fmt: skip
    check_tradeoff(job)
    # Rows are those whose only reference has the value, and that were not rejected.
    rows = rows_of(job, "generate")
    loud = rows["reference"].str.ends_with("!").sum()
    assert {(e["value"], e["rows"]) for e in entries} == {
        ("loud", loud), ("calm", len(rows) - loud),
    }  # fmt: skip
    page = (job / "runs/wishes/latest/report/index.html").read_text()
    assert "<h2>Wishes</h2>" in page
    assert "tone loud: BLEU against percent met" in page


def test_a_model_that_was_told_has_no_head(job: Path) -> None:
    trained = folder_of(job, "train")
    assert json.loads((trained / "model.json").read_text())["format"] == 4
    assert not (trained / "wishes.json").exists()


def check_tradeoff(job: Path) -> None:
    """Wishes are met, and without one an output is one or the other."""
    entries = json.loads((folder_of(job, "score") / "tradeoff.json").read_text())
    met = {(e["value"], e["kind"], e["strength"]): e["met"] for e in entries}
    for value in ("calm", "loud"):
        assert met[value, "wish", 2] >= 0.9
        assert met[value, "draws", 0] >= met[value, "selected", 0]
    for kind in ("plain", "selected"):
        assert min(met["calm", kind, 0], met["loud", kind, 0]) < 0.9


@pytest.mark.long
def test_a_head_meets_wishes_of_a_model_that_stays_as_it_is(
    tmp_path: Path, run_pipeline: Run, root: Path
) -> None:
    folder = written(tmp_path)
    head = """\
  train:
    features: text
    start: plain
    steps: 0
    batch_tokens: 600
    precision: fp32
    tell_wishes: 0
    wishes: {tone: {column: tone}}
  plain-graphs: {use: export, model: plain, features: text}
"""
    text = JOB.replace("  train:\n", "  plain:\n    use: train\n")
    text = text.replace("    wishes: {tone: {column: tone}}\n", head)
    (folder / "job.yaml").write_text(text)
    run_pipeline(folder / "job.yaml", "--runs-dir", folder / "runs")
    (known,) = json.loads((folder_of(folder, "train") / "wishes.json").read_text())
    assert (known["wish"], known["values"]) == ("tone", ["calm", "loud"])
    assert known["accuracy"] > 0.9 > known["commonest"]
    check_tradeoff(folder)
    page = (folder / "runs/wishes/latest/report/index.html").read_text()
    assert "commonest value" in page
    sources = "".join(f"{row}\n" for row in rows_of(folder, "generate")["text"])
    plain = translated(root, folder_of(folder, "plain-graphs"), sources).stdout
    assert translated(root, folder_of(folder, "export"), sources).stdout == plain


def translated(root: Path, graphs: Path, text: str, *options: str, code: int = 0) -> Any:
    command = [sys.executable, "-m", "exports.translate", str(graphs), *options]
    completed = subprocess.run(command, input=text, capture_output=True, text=True, cwd=root)
    assert completed.returncode == code, completed.stderr
    return completed


@pytest.mark.parametrize("value", ["loud", "calm"])
def test_the_graphs_alone_meet_the_same_wishes(job: Path, root: Path, value: str) -> None:
    rows = rows_of(job, "generate").filter(pl.col("wish.tone") == value)
    text = "".join(f"{row}\n" for row in rows["text"])
    wish = ("--wish", f"tone={value}", "--strength", "2")
    lines = translated(root, folder_of(job, "export"), text, *wish).stdout.splitlines()
    assert lines == rows["hypothesis"].to_list()
    drawn = translated(root, folder_of(job, "export"), text, *wish, "--draws", "4").stdout
    met = [line.endswith("!") == (value == "loud") for line in drawn.splitlines()]
    assert sum(met) >= 0.9 * len(met)


def test_no_wish_and_no_strength_are_the_same(job: Path, root: Path) -> None:
    graphs, text = folder_of(job, "export"), "3 4 5 1\n1 2 3 77\n"
    plain = translated(root, graphs, text).stdout
    assert translated(root, graphs, text, "--wish", "tone=loud", "--strength", "0").stdout == plain


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("tone=lout", "did you mean 'loud'?"),
        ("tune=loud", "did you mean 'tone'?"),
        ("loud", "--wish is NAME=VALUE"),
    ],
)
def test_the_command_tells_what_it_does_not_know(
    job: Path, root: Path, wish: str, said: str
) -> None:
    code = 2 if "=" not in wish else 1
    error = translated(root, folder_of(job, "export"), "3\n", "--wish", wish, code=code).stderr
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("generate.wish={tone: lout}", "there is no value 'lout' among calm, loud; did you mean"),
        ("generate.wish={tone: {column: wanting}}", "the rows have no column 'wanting'"),
        ("generate.wish={strength: 1}", "names no wish"),
        ("score.judges={tune: {by: hsk_level}}", "generate wished for no tune; did you mean"),
        ("train.wishes={tone: {column: tune}}", "the rows have no column 'tune'"),
        ("train.wishes={tone: {column: target}}", "it needs 2 to 64"),
        ("train.wishes={strength: {column: tone}}", "choose another name"),
    ],
)
def test_what_does_not_fit_is_told(job: Path, run_pipeline: Run, change: str, said: str) -> None:
    completed = run_pipeline(
        job / "job.yaml", "--runs-dir", job / "runs", "--set", change, code=None
    )
    assert completed.returncode in (1, 2)
    assert said in completed.stdout + completed.stderr
    assert "Traceback" not in completed.stdout + completed.stderr
