"""The history of all runs as a static site: `python -m pipelines.report runs`.

Reads the records that runs leave behind and writes `runs/site/index.html`: every run with its
scores and gates, the history of each score, and for any two runs what changed between them, down
to the sentences. It needs no server and no network, and can be copied elsewhere as it is.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.contracts.base import Contract
from pipelines.contracts.runs import Parts, RunRecord
from pipelines.contracts.scores import Comparison
from pipelines.contracts.shown import all_visible, complain, tell
from pipelines.store.artifacts import Store
from pipelines.store.files import replacing, write_json, write_text
from pipelines.store.objects import ObjectStoreError
from pipelines.store.runs_dir import SITE, RunsDir

PAGE = Path(__file__).parent / "templates" / "site.html"
MARK, HASH = "/*RUNS*/", "/*HASH*/"
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
DIGEST = re.compile(r"[0-9a-f]{64}")
SHORT = 12
"""Digits of a hash that are shown."""


def read_runs(runs_dir: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Every run's folder and record, in the order in which they started."""
    paths = [path for path in runs_dir.glob("*/*/run.json") if not path.parent.is_symlink()]
    for path in sorted(paths, key=lambda path: path.parent.name):
        try:
            record = RunRecord.read(path.parent)
        except (OSError, ValueError) as error:
            complain(f"left out: {error}")
            continue
        # A run's names become names of files, and a foreign record may say anything.
        names = {"pipeline": path.parent.parent.name, "run": path.parent.name}
        yield path.parent, record.model_copy(update=names)


class Summary(Contract):
    """What the overview needs of a run; `runs.json` is a list of them."""

    pipeline: str
    run: str
    started: str
    status: str
    late: bool
    error: str | None
    scheduled_as: str | None
    variables: dict[str, str]
    seconds: float
    ran: tuple[str, ...]
    """Stages that were not cached."""
    gates: tuple[tuple[str, bool, str], ...]
    """Gate, whether it passed, message."""
    scores: tuple[tuple[str, str, str, float, tuple[float, float] | None, int], ...]
    """Task, split, metric, value, 95% interval, segments."""
    report: str | None
    """Its page, from the site's folder."""
    data: str
    """The script with its `Details`."""


class Details(Contract):
    """The facts of a run that the comparison of two runs needs."""

    stages: dict[str, Parts]
    baseline: str | None
    comparison: tuple[Comparison, ...]
    sentences: str | None
    """The script with its sentences."""


def summary(folder: Path, record: RunRecord, site: Path) -> Summary:
    report = folder / "report" / "index.html"
    return Summary(
        pipeline=record.pipeline,
        run=record.run,
        started=record.started,
        status=record.status,
        late=record.late,
        scheduled_as=record.scheduled_as,
        variables=record.variables,
        error=record.error,
        seconds=round(sum(stage.seconds for stage in record.stages.values()), 1),
        ran=tuple(name for name, stage in record.stages.items() if stage.status == "ran"),
        gates=tuple((gate.gate, gate.passed, gate.message) for gate in record.gates),
        scores=tuple(
            (score.task, score.split, score.metric, score.value, score.ci95, score.n)
            for score in record.scores
            if score.whole and score.own
        ),
        report=os.path.relpath(report, site) if report.exists() else None,
        data=f"data/{record.pipeline}/{record.run}.js",
    )


def details(record: RunRecord, sentences: str | None) -> Details:
    stages = {
        name: {
            part: {
                key: str(value)[:SHORT] if part in ("CODE", "INPUT") else value
                for key, value in values.items()
            }
            for part, values in facts.parts.items()
        }
        for name, facts in record.stages.items()
        if facts.parts
    }
    return Details(
        stages=stages,
        baseline=record.baseline,
        comparison=tuple(entry for entry in record.comparison if entry.whole),
        sentences=sentences,
    )


def put_sentences(store: Store, record: RunRecord, site: Path) -> str | None:
    """Copies a report's sentences, pictures and sounds to the site, once for all runs with the
    same report, and returns the script's name; None if they do not exist, or no longer.

    Pictures and sounds are named after their row, so that all runs share them.
    """
    for stage, facts in record.stages.items():
        if facts.kind != "report" or not facts.fingerprint or not facts.digest:
            continue
        if not DIGEST.fullmatch(facts.digest):
            complain(f"sentences left out: {facts.digest[:80]!r} is no digest")
            continue
        name = f"data/sentences/{facts.digest[:16]}.js"
        if (site / name).exists():
            return name
        try:
            artifact = store.read(store.path(stage, facts.fingerprint))
            problem = next(store.problems(artifact), None) if artifact else None
            if problem:
                raise ValueError(f"{store.path(stage, facts.fingerprint)}: {problem}")
            sentences = artifact.sentences() if artifact else None
        except (OSError, ValueError) as error:
            complain(f"sentences left out: {error}")
            continue
        if artifact is not None and sentences is not None:
            for file in artifact.files("media/*"):
                target = site / "data" / "media" / file.name
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(target) as temporary:
                        shutil.copyfile(file, temporary)
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(site / name, _script(sentences))
        return name
    return None


def _script(data: Contract) -> str:
    """A script that gives the page some data: a page opened from a file may not fetch any."""
    return f"loaded({json.dumps(all_visible(data.to_json()), ensure_ascii=False)})\n"


def build(runs: RunsDir, site: Path) -> int:
    """Writes the site; returns how many runs are in it."""
    site.mkdir(parents=True, exist_ok=True)
    store = runs.store()
    for pipeline in runs.pipelines():
        runs.pull(pipeline, whole=True)
    listed = []
    for folder, record in read_runs(runs.folder):
        told = summary(folder, record, site)
        listed.append(told.to_json())
        path = site / told.data
        if not path.exists() or path.stat().st_mtime < (folder / "run.json").stat().st_mtime:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, _script(details(record, put_sentences(store, record, site))))
    page = PAGE.read_text(encoding="utf-8")
    # A script ends at the first "</script", even inside a string.
    data = json.dumps(all_visible(listed), ensure_ascii=False).replace("<", "\\u003c")
    before, after = page.split(MARK)
    page = before + data + after
    script = SCRIPT.search(page)
    assert script is not None
    hashed = base64.b64encode(hashlib.sha256(script[1].encode("utf-8")).digest()).decode("ascii")
    write_text(site / "index.html", page.replace(HASH, f"'sha256-{hashed}'", 1))
    write_json(site / "runs.json", listed)
    return len(listed)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.report",
        description="Writes a static site of all runs in a folder.",
    )
    command.add_argument("runs_dir", help="the folder of --runs-dir, or its URL")
    command.add_argument("--out", type=Path, help="where the site goes (default: RUNS_DIR/site)")
    options = command.parse_args(arguments)
    runs = RunsDir.of(options.runs_dir)
    try:
        if not runs.exists():
            complain(f"there is no folder {runs}")
            return 2
        site = options.out or runs.folder / SITE
        count = build(runs, site)
        if not count:
            complain(f"{runs} has no runs")
            return 2
        if options.out is None:
            runs.push_site(site)
    except ObjectStoreError as error:
        complain(f"stopped: {error}")
        return 1
    tell(f"{site / 'index.html'}: {count} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
