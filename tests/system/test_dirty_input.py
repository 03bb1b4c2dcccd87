"""An input with every kind of damage: rows in = rows out + rejected in every stage, and the
report lists each reject with its file and line."""

from __future__ import annotations

import html
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

FILE = "<img src=x onerror=alert(1)>.tsv"
JOB = f"""\
name: dirty
stages:
  rows:
    use: ingest
    source: '{FILE}'
    columns: {{text: zh, target: en, id: id}}
    languages: {{text: zh, target: en}}
    split: {{valid: 10, test: 10}}
    shards: 3
  text:
    records: rows
    vocabulary: {{size: 150}}
    filter: {{script: {{source: Han, target: Latin}}}}
  train:
    features: text
    model: {{use: transformer, layers: 1, width: 16, heads: 2}}
    steps: 4
    validate_every: 4
  export: {{model: train, features: text, parity_rows: 4}}
  generate: {{graphs: export, features: text}}
  score: {{predictions: generate}}
  report: {{scores: score}}
"""


def test_nothing_is_lost_and_every_reject_is_told(
    tmp_path: Path, run_pipeline: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    good = [
        f"{'天地人你我他'[n % 6]}{'上下来去'[n % 4]}{'大小多少'[n // 6 % 4]}{'日月'[n % 2]}{n}"
        for n in range(80)
    ]
    lines = [b"zh\ten\tid"]
    lines += [f"{text}\tword {n} and more\t{n}".encode() for n, text in enumerate(good)]
    bad = {
        b"\xc3\x28\xff\tbroken\tb1": "broken UTF-8",
        "少列\tmissing".encode(): "wrong number of columns",
        b"\tempty\tb2": "empty text",
        "空\t\tb3".encode(): "empty target",
        ("长" * 100_000 + "\tlong\tb4").encode(): "too long",
        "重复的号\tthe id of another\t7".encode(): "duplicate id",
        "天下\x00\x1b\tcontrol \x07 characters\tb5".encode(): "",
        b"\x01\x02\tonly controls\tb6": "empty source after normalisation",
        b"<script>alert(1)</script>\t<b>latin</b>\tb7": "source is not in Han script",
        "汉字\t汉字\tb8".encode(): "target is not in Latin script",
        ("天\t" + " ".join(f"x{n}" for n in range(200)) + "\tb9").encode(): "too many tokens",
        ("天\t" + "many words " * 12 + "\tb10").encode(): "lengths do not fit",
        f"{good[3]}\tword 3 and more\tb11".encode(): "duplicate",
    }
    first = len(lines) + 1
    (tmp_path / FILE).write_bytes(b"\n".join([*lines, *bad]) + b"\n")
    (tmp_path / "dirty.yaml").write_text(JOB)
    run_pipeline(tmp_path / "dirty.yaml", "--runs-dir", tmp_path / "runs")
    run = tmp_path / "runs" / "dirty" / "latest"
    report = json.loads((run / "report" / "report.json").read_text())
    stages = report["stages"]

    rejects = [
        json.loads(line)
        for line in (run / "report" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    reported = {row["position"]: row["reason"] for row in rejects}
    expected = {
        f"{FILE}:{first + offset}": reason for offset, reason in enumerate(bad.values()) if reason
    }
    assert reported == expected
    page = (run / "report" / "index.html").read_text()
    assert all(html.escape(position) in page for position in expected)
    assert "<script>" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page

    assert stages["rows"]["rows"] + sum(stages["rows"]["rejected"].values()) == 80 + len(bad)
    text_rows = stages["text"]["rows"] + sum(stages["text"]["rejected"].values())
    assert text_rows == stages["rows"]["rows"]
    assert stages["train"]["rows"] + stages["generate"]["rows"] == stages["text"]["rows"]
    assert stages["score"]["rows"] == stages["generate"]["rows"]
    lines_of = {p.name: p.read_text().count("\n") for p in (run / "text").glob("*")}
    assert set(lines_of.values()) == {stages["generate"]["rows"]}
