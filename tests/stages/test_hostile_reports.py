"""Reports whose every text means harm: the page runs nothing, loads nothing and hides nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.contracts.reports import Content
from pipelines.contracts.runs import RunRecord
from pipelines.contracts.shown import all_visible, visible
from pipelines.store.artifacts import read_artifact
from stages.report.pages import markdown_cell, markdown_code, write_pages
from stages.report.tables import quoted

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PAYLOAD = (
    "</td></script><script>document.title='RUN'</script>"
    "<img src=x onerror=\"document.title='RUN'\">"
    "<img src=http://127.0.0.1:9/leak>\u202e\0\x1b[x](javascript:alert(1))![y](http://127.0.0.1:9/z)"
    "|`=HYPERLINK(1)"
)


def poisoned(value: Any, known: set[str]) -> Any:
    """A JSON value with the payload in all its text, but for words that have a meaning."""
    if isinstance(value, str):
        return value if value in known or value.startswith("data:") else value + PAYLOAD
    if isinstance(value, dict):
        return {poisoned(name, known): poisoned(item, known) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, known) for item in value]
    return value


def test_a_report_with_payloads_in_every_field(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, runs = finished
    (folder,) = runs.glob("store/artifacts/report-*")
    artifact = read_artifact(folder)
    assert artifact is not None
    written = json.loads((folder / "content.json").read_text())
    # Fields of classes, and words that these compare with.
    record = RunRecord.read((runs / "small" / "latest").resolve())
    known = set(re.findall(r'"(\w+)":', json.dumps([written, record.to_json()]))) | {
        "train",
        "valid",
        "test",
        "text",
    }
    known |= {"bleu", "chrf", "ter", "exact_match", "perplexity", "token_accuracy", "records"}
    known |= {artifact["kind"] for artifact in written["lineage"].values()}
    hostile = Content.model_validate(poisoned(written, known))
    record = RunRecord.read((runs / "small" / "latest").resolve())
    facts = poisoned(
        record.to_json(), known | {"ran", "cached", "complete", "running", record.started}
    )
    out = tmp_path / "report"
    out.mkdir()
    rejects = dict.fromkeys(("position", "stage", "reason", "detail", "excerpt", "id"), PAYLOAD)
    (out / "rejected.jsonl").write_text(json.dumps(rejects) + "\n")
    write_pages(hostile, RunRecord.model_validate(facts), out)

    page = (out / "index.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "\0" not in page
    assert "\u202e" not in page and "\u27e8U+202E\u27e9" in page
    assert "Content-Security-Policy" in page
    whole = (out / "report.md").read_text()
    markdown = re.sub(r"`[^`\n]*`", "", whole)  # in code nothing has a meaning
    assert "](" not in markdown and "<img" not in markdown and "http://" not in markdown
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in whole.splitlines()]
    for line, width, before in zip(whole.splitlines(), widths[1:], widths, strict=False):
        assert not width or not before or width == before, line
    assert "## Graphs" in whole
    assert "\0" not in whole
    for path in (out / "tables").glob("*.csv"):
        assert not re.search(r'(^|,)"?[=+@]', path.read_text(), re.MULTILINE), path
        # With ; between cells, a;=1+1 would be two, of which one is a formula.
        bare = re.sub(r'"(?:[^"]|"")*"', "", path.read_text())
        assert not re.search(r"[;=]", bare) and set(re.findall(r"[a-z]+", bare)) <= {"true", "e"}
    if BROWSER is None:
        pytest.skip("there is no browser")
    completed = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", "--virtual-time-budget=3000", "--dump-dom",
            "--enable-logging=stderr", f"file://{out / 'index.html'}",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>([^<]*)", completed.stdout)
    assert title is not None and not title[1].startswith("RUN")
    assert "127.0.0.1" not in completed.stderr and "Refused" not in completed.stderr


@pytest.mark.parametrize(
    "text",
    ["[x](javascript:alert(1))", "![x](http://a.b)", "<http://a.b>", "http://a.b", "www.a.b",
     "a@b.c", "<script>", "[x]: http://a.b", "a|b", "`a`", "* a", "\\[x](y)",
     "~~a~~", "_a_ b", "snake_case", "$a$", "mailto:a@b.c"],
)  # fmt: skip
def test_markdown_gives_no_sign_of_data_a_meaning(text: str) -> None:
    import html

    cell = markdown_cell(text)
    assert html.unescape(cell.replace("<!-- -->", "")) == text
    # GFM makes a link of an address even if its sign is an entity.
    assert cell.count("<!-- -->&#64;") == text.count("@")
    cell = cell.replace("<!-- -->", "")
    assert not set(cell) & set("[]<>|`*@\\~$") and "://" not in cell
    assert "_" not in cell or text == cell == "snake_case"
    assert not re.search(r"www\.", cell)
    assert "`" not in markdown_code(text) and "\n" not in markdown_code(text)


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\n", "＝"])
def test_no_cell_of_a_csv_is_a_formula(sign: str) -> None:
    texts = pl.Series("a", [f"{sign}SUM(1+1)*cmd|' /C calc'!A0", "plain", None, f" {sign}x"])
    assert quoted(texts).to_list() == [f"'{texts[0]}", "plain", None, f" {sign}x"]


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\0b\x1b\u202ec\u2028\ufeff") == "a\u2400b\u241b⟨U+202E⟩c⟨U+2028⟩⟨U+FEFF⟩"
    assert visible("tab\there\nnew 读 café \u200d") == "tab\there\nnew 读 café \u200d"
    assert all_visible({"a\0": ["\x07", 1, None, 1.5]}) == {"a\u2400": ["\u2407", 1, None, 1.5]}
    assert visible("\udc80").encode("utf-8")
