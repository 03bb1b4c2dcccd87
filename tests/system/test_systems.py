"""Another system's output beside ours, compared with sacreBLEU's command on the same files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.report.pages import digits


def test_another_systems_file_is_scored_and_tested(
    tmp_path: Path,
    finished: tuple[Path, Path],
    small_job: Callable[..., Path],
    run_pipeline: Callable[..., subprocess.CompletedProcess[str]],
    read_record: Callable[[Path], dict[str, Any]],
) -> None:
    text = finished[1] / "small" / "latest" / "text"
    references = (text / "translate.test.ref.txt").read_text().splitlines()
    damaged = [line[2:] if n % 3 else line for n, line in enumerate(references)]
    job = small_job(tmp_path)
    lines = tmp_path / "other.translate.test.txt"
    lines.write_text("\n".join(damaged) + "\n")
    twin = tmp_path / "twin.translate.test.txt"
    twin.write_text((text / "translate.test.hyp.txt").read_text())
    pattern = "{task}.{split}.txt"
    option = f"score.systems={{other: 'other.{pattern}', twin: 'twin.{pattern}'}}"
    run_pipeline(job, "--runs-dir", tmp_path / "runs", "--set", option)
    home = tmp_path / "runs" / "small"
    record = read_record(home)
    theirs = {s["metric"]: s["value"] for s in record["scores"] if s.get("baseline") == "other"}
    paths = [str(text / f"translate.test.{kind}.txt") for kind in ("ref", "hyp")]
    command = [
        sys.executable, "-m", "sacrebleu", paths[0], "-i", str(lines),
        paths[1], "-m", "bleu", "chrf", "ter", "--paired-ar", "--format", "text", "-w", "6",
    ]  # fmt: skip
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    table = [line for line in completed.stdout.splitlines() if "│" in line]
    other, _, p_values = ([float(x) for x in re.findall(r"\d+\.\d+", line)] for line in table[1:4])
    report = json.loads((home / "latest" / "report" / "report.json").read_text())
    beside = {e["metric"]: e for e in report["systems"] if e["system"] == "other"}
    for metric, value, p in zip(("bleu", "chrf", "ter"), other[-3:], p_values[-3:], strict=True):
        assert round(theirs[metric], 6) == pytest.approx(value)
        assert beside[metric]["baseline"] == theirs[metric]
        assert round(beside[metric]["p_randomisation"], 4) == pytest.approx(p)
    assert set(theirs) == {"bleu", "chrf", "ter", "exact_match"}
    page = (home / "latest" / "report" / "report.md").read_text()
    assert "Against system" in page
    ours = {s["metric"]: s["value"] for s in record["scores"] if not s.get("baseline")}
    side = page.partition("Systems side by side")[2].split("\n\n")[1].splitlines()
    assert side[0].startswith("| system | bleu | chrf | ter | exact_match |")
    assert side[2].startswith(f"| this run | {digits(ours['bleu'])} |")
    assert side[3].startswith(
        f"| other | {digits(theirs['bleu'])} (p = {beside['bleu']['p']:.4f}, "
    )
    assert side[4].startswith(f"| twin | {digits(ours['bleu'])} (p = 1.0000, no difference) |")

    lines.write_text("one line\n")
    failed = run_pipeline(job, "--runs-dir", tmp_path / "runs", "--set", option, code=1)
    assert "has 1 lines, but translate has 30 rows in test" in failed.stdout + failed.stderr
    lines.unlink()
    failed = run_pipeline(job, "--runs-dir", tmp_path / "runs", "--set", option, code=None)
    assert failed.returncode in (1, 2)
    assert "systems: there is no file" in failed.stdout + failed.stderr
