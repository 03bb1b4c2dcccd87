"""The site of all runs, checked with a real browser if there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pipelines.finished.site import main
from pipelines.store.artifacts import Artifact, Store

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
INJECTION = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
)


def record(number: int, **facts: Any) -> dict[str, Any]:
    value = 20 + number / 100
    return {
        "pipeline": "night", "run": f"20260101T{number:06d}-000000-abcd",
        "started": f"2026-01-{number % 28 + 1:02d}T00:00:00+00:00", "status": "complete",
        "seed": 1, "machine": {"platform": "x", "cpus": 1, "python": "3.11", "version": "0"},
        "stages": {
            "train": {
                "status": "ran", "reason": "NEW", "seconds": 3.5, "kind": "model",
                "digest": f"{number:064d}",
                "parts": {"CONFIG": {"steps": number}, "CODE": {"a.py": "f" * 64}},
            }
        },
        "gates": [{"gate": "bleu >= 10", "passed": True, "message": "bleu >= 10: passed"}],
        "scores": [
            {
                "task": "translate", "split": "test", "slice": None, "metric": metric,
                "value": value, "ci95": [value - 1, value + 1], "n": 400,
            }
            for metric in ("bleu", "chrf", "ter")
        ],
        "baseline": None, "comparison": [], **facts,
    }  # fmt: skip


@pytest.fixture
def put(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes the record of a run into `tmp_path/runs`, and returns its name."""

    def put(record: dict[str, Any]) -> str:
        folder = tmp_path / "runs" / record["pipeline"] / record["run"]
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
        return f"{record['pipeline']}/{record['run']}"

    return put


def put_sentences(runs: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Artifact:
    """Publishes a report with these sentences, and puts it into the record of a run."""
    store = Store(runs / "store")
    fingerprint = str(len(store.artifacts())) * 64
    output = store.workspace("report", fingerprint) / "output"
    (output / "media").mkdir()
    (output / "media" / "a.png").write_bytes(b"png")
    text = json.dumps({"metrics": {"translate/test": "chrf"}, "rows": rows})
    (output / "sentences.json").write_text(text, encoding="utf-8")
    artifact = store.publish(
        "report", fingerprint, kind="report", parts={}, rows=1, rejected={}, properties={},
        versions={}, measured={},
    )  # fmt: skip
    facts["stages"]["report"] = {
        "status": "ran", "reason": "NEW", "kind": "report", "digest": artifact.digest,
        "fingerprint": fingerprint, "artifact": str(artifact.folder.relative_to(runs)),
    }  # fmt: skip
    return artifact


def opened(site: Path, fragment: str = "") -> str:
    """The page's DOM after rendering."""
    assert BROWSER is not None
    completed = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu",
            "--disable-background-networking", "--virtual-time-budget=5000", "--dump-dom",
            f"file://{site / 'index.html'}{fragment}",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return completed.stdout


def test_every_run_is_in_it_and_a_second_time_costs_little(
    tmp_path: Path, put: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [put(record(n)) for n in range(3)]
    (tmp_path / "runs" / "night" / "latest").symlink_to(names[2].split("/")[1])
    assert main([str(tmp_path / "runs")]) == 0
    assert "3 runs" in capsys.readouterr().out
    site = tmp_path / "runs" / "site"
    listed = json.loads((site / "runs.json").read_text())
    assert [f"{run['pipeline']}/{run['run']}" for run in listed] == names
    data = site / listed[0]["data"]
    before = data.stat().st_mtime_ns
    put(record(3))
    assert main([str(tmp_path / "runs")]) == 0
    assert data.stat().st_mtime_ns == before
    assert len(json.loads((site / "runs.json").read_text())) == 4


def test_no_runs_and_no_folder_are_said(tmp_path: Path) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path)]) == 2


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb`: WCAG 2.1, definitions."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "template", ["pipelines/finished/templates/site.html", "stages/report/templates/report.html"]
)
def test_text_stands_out_from_what_is_behind_it(root: Path, template: str) -> None:
    """WCAG 2.1, success criterion 1.4.3 (AA): contrast of 4.5 to 1, in light and in dark."""
    schemes = re.findall(r":root \{([^}]+)\}", (root / template).read_text())
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        inks = set(colors) & {"ink", "soft", "one", "two", "good", "bad"}
        pairs = [(ink, paper) for ink in inks for paper in ("paper", "panel")]
        for ink, paper in [*pairs, ("paper", "good"), ("paper", "bad")]:
            light, dark = sorted((luminance(colors[ink]), luminance(colors[paper])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


PRESSES = """<script>
const press = element => { element.focus(); element.click(); return document.activeElement; };
const kept = press(document.querySelectorAll("#runs th button")[1]).dataset.key;
const boxes = [...document.querySelectorAll("#runs input")].slice(0, 3).map(box => press(box).dataset.key);
const further = press(document.querySelector("#runs tbody tr:last-child button")).closest("tr").rowIndex;
press(document.getElementById("compare"));
setTimeout(() => {
  const back = document.activeElement.textContent;
  location.hash = "";
  setTimeout(() => { document.title = [kept, new Set(boxes).size, further, back, document.activeElement.id].join("|"); }, 50);
}, 50);
</script>"""  # noqa: E501


@browser
def test_what_is_pressed_keeps_the_keyboards_focus(tmp_path: Path, put: Callable[..., str]) -> None:
    """Or passes it to the next element: redrawing a table must not lose the focus."""
    for number in range(210):
        put(record(number))
    main([str(tmp_path / "runs")])
    index = tmp_path / "runs" / "site" / "index.html"
    page = index.read_text().replace("</body>", PRESSES + "</body>")
    index.write_text(re.sub(r"'sha256-[^']+'", "'unsafe-inline'", page))  # for our own script
    title = re.search(r"<title>([^<]*)</title>", opened(index.parent))
    assert title is not None
    assert title[1] == "sort pipeline|3|201|← all runs|compare"


@browser
def test_two_runs_side_by_side(tmp_path: Path, put: Callable[..., str]) -> None:
    row = {
        "id": "1", "task": "translate", "split": "test", "text": "原文", "reference": "the cat",
        "hypothesis": "the cat", "score": 100.0, "media": ["a.png"],
    }  # fmt: skip
    first, second = record(1), record(2)
    put_sentences(tmp_path / "runs", first, [row, {**row, "id": "2"}])
    worse = {**row, "hypothesis": "a dog", "score": 12.0}
    put_sentences(tmp_path / "runs", second, [worse, {**row, "id": "2"}])
    second["baseline"] = f"night/{first['run']}"
    second["comparison"] = [
        {
            "task": "translate", "split": "test", "slice": None, "metric": "bleu", "changed": 1,
            "common": 2, "p": 0.0123, "n": 2, "value": 21.0, "baseline": 20.0, "difference": 1.0,
            "ci95": [0.5, 1.5], "p_bootstrap": 0.01, "p_randomisation": 0.01,
        }
    ]  # fmt: skip
    names = [put(first), put(second)]
    main([str(tmp_path / "runs")])
    pair = "#compare=" + ",".join(quote(name, safe="") for name in names)
    page = opened(tmp_path / "runs" / "site", pair)
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(r"train\s+CONFIG\s+steps\s+1\s+2", text)
    assert "0.0123" in text and "1 of 2" in text
    assert "Worse: 1" in text and "Better: 0" in text and "a dog" in text
    (image,) = re.findall(r'<img src="([^"]+)"', page)
    assert (tmp_path / "runs" / "site" / image).read_bytes() == b"png"


@browser
def test_what_is_text_stays_text(tmp_path: Path, put: Callable[..., str]) -> None:
    facts = record(1, status="failed", error=INJECTION, run=INJECTION.replace("/", ":"))
    facts["gates"][0]["message"] = INJECTION
    facts["scores"][0]["task"] = INJECTION
    row = {
        "id": INJECTION, "task": INJECTION, "split": "test", "text": INJECTION,
        "reference": INJECTION, "hypothesis": INJECTION, "score": 1.0, "media": [],
    }  # fmt: skip
    put_sentences(tmp_path / "runs", facts, [row])
    other = record(2)
    put_sentences(tmp_path / "runs", other, [{**row, "hypothesis": "x", "score": 0.5}])
    names = [put(facts), put(other)]
    main([str(tmp_path / "runs")])
    site = tmp_path / "runs" / "site"
    pair = "#compare=" + ",".join(quote(name, safe="") for name in names)
    for page in (opened(site), opened(site, pair)):
        assert "<title>Runs</title>" in page
        assert "<img" not in page.partition("<script>")[0]
        assert "&lt;img src=x" in page


def test_a_foreign_run_writes_nothing_outside_the_site(
    tmp_path: Path, put: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    good, run, stage = record(1), record(2), record(3)
    for facts in (good, run, stage):
        put_sentences(tmp_path / "runs", facts, [])
    put(good)
    changes: list[dict[str, Any]] = [
        {"run": "../../../../ESCAPED"},
        {"pipeline": "../../ESCAPED"},
        {"stages": {"../../x": run["stages"]["report"]}},
        {"stages": {"report": {**run["stages"]["report"], "digest": "../../../ESCAPED"}}},
        {"stages": {"report": {**run["stages"]["report"], "fingerprint": "../../../x"}}},
        {"stages": {"report": {**run["stages"]["report"], "artifact": "../../../x"}}},
    ]
    for number, change in enumerate(changes):
        folder = tmp_path / "runs" / "night" / f"foreign-{number}"
        folder.mkdir(parents=True)
        facts = {**run, "run": folder.name, **change}
        (folder / "run.json").write_text(json.dumps(facts))
    before = {path for path in tmp_path.rglob("*") if "site" not in path.parts}
    assert main([str(tmp_path / "runs")]) == 0
    assert "7 runs" in capsys.readouterr().out
    after = {path for path in tmp_path.rglob("*") if "site" not in path.parts}
    assert {path.name for path in after - before} <= {"digests.sqlite"}
    assert not list(tmp_path.rglob("*ESCAPED*"))


@browser
def test_a_thousand_runs_open_within_a_second(tmp_path: Path, put: Callable[..., str]) -> None:
    for number in range(1000):
        put(record(number))
    main([str(tmp_path / "runs")])
    page = opened(tmp_path / "runs" / "site")
    drawn = re.search(r'data-drawn="(\d+)"', page)
    assert drawn is not None and int(drawn[1]) < 1000
    assert "1000 of 1000 runs" in page
    assert page.count('type="checkbox"') == 200 and "Show 800 more" in page


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sentences.json", "{", "sentences.json has 1 bytes, not"),
        ("media/a.png", "gnp", "media/a.png is not as it was stored"),
        ("manifest.json", '{"format": 99}', "was written by a later version"),
    ],
)
def test_a_report_that_cannot_be_read_costs_its_own_sentences_alone(
    tmp_path: Path,
    put: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str,
    message: str,
) -> None:
    row = {
        "id": "1", "task": "t", "split": "test", "text": "a", "reference": "b", "hypothesis": "b",
        "score": 1.0, "media": [],
    }  # fmt: skip
    damaged, whole = record(1), record(2)
    first = put_sentences(tmp_path / "runs", damaged, [row])
    second = put_sentences(tmp_path / "runs", whole, [{**row, "id": "2"}])
    put(damaged)
    put(whole)
    (first.folder / file).write_text(text)
    assert main([str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr()
    assert message in shown.err and "2 runs" in shown.out
    written = (tmp_path / "runs" / "site" / "data" / "sentences").iterdir()
    assert [path.name for path in written] == [second.digest[:16] + ".js"]
