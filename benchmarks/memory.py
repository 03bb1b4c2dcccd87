"""Memory and time of stages for inputs of several sizes.

`python benchmarks/memory.py text 250000 500000 1000000 --workers 1 2`: rows of TSV, for `ingest`
and `text`; `pictures 5000 10000 20000`: JPEGs that rows name, for `ingest` and `image`. For each,
the seconds of both stages and the largest resident memory of any process of the run, looked at ten
times a second. `--plot FILE` draws the memory over the time of each run, as SVG.
"""

from __future__ import annotations

import argparse
import html
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

JOB = """\
name: memory
beam: {{direct_num_workers: {workers}}}
stages:
  rows:
    use: ingest
    source: rows.tsv
    columns: {{{column}: source, target: target}}
    split: {{valid: 1000, test: 1000}}
    shards: 16
  second: {{{stage}}}
"""
STAGES = {
    "text": ("text", "use: text, records: rows, vocabulary: {size: 4000}"),
    "pictures": ("image", "use: image, records: rows, resize: 128, crop: 112, patch: 16"),
}
"""The column, and the stage that is measured."""


def write_text(folder: Path, rows: int) -> None:
    """Different sentences of 5,000 words."""
    chance = random.Random(1)
    words = [f"w{number}" for number in range(5000)]
    with (folder / "rows.tsv").open("w", encoding="utf-8") as file:
        file.write("source\ttarget\n")
        for number in range(rows):
            source, target = (" ".join(chance.choices(words, k=n)) for n in (6, 7))
            file.write(f"{number} {source}\t{target}\n")


def write_pictures(folder: Path, rows: int) -> None:
    """Different JPEGs of 320 × 240 with detail at several scales."""
    chance = np.random.default_rng(1)
    (folder / "pictures").mkdir()
    with (folder / "rows.tsv").open("w", encoding="utf-8") as file:
        file.write("source\ttarget\n")
        for number in range(rows):
            layers = [
                s * cv2.resize(chance.random((240 // s, 320 // s, 3), np.float32), (320, 240))
                for s in (4, 16, 80)
            ]
            name = f"pictures/{number:06d}.jpg"
            cv2.imwrite(str(folder / name), np.clip(sum(layers) * 2.55, 0, 255).astype(np.uint8))
            file.write(f"{name}\tpicture {number}\n")


WRITERS = {"text": write_text, "pictures": write_pictures}


def tree(root: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, pending = [], [root]
    while pending:
        found.append(pending.pop())
        pending += children.get(found[-1], [])
    return found


def resident(pid: int) -> float:
    """Megabytes; 0 if the process has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 1e6


@dataclass(frozen=True)
class Measured:
    """What a run took."""

    what: str
    seconds: dict[str, float]
    """Of each stage."""
    curve: list[tuple[float, float, float]]
    """Seconds since the start, the largest process and the sum of all, in megabytes."""

    @property
    def largest(self) -> float:
        return max(process for _, process, _ in self.curve)

    @property
    def together(self) -> float:
        return max(total for _, _, total in self.curve)


def measure(folder: Path, kind: str, what: str, workers: int) -> Measured:
    column, stage = STAGES[kind]
    (folder / "job.yaml").write_text(JOB.format(workers=workers, column=column, stage=stage))
    runs = folder / f"runs-{workers}"
    job = str(folder / "job.yaml")
    command = [sys.executable, "-m", "pipelines.run", job, "--runs-dir", str(runs)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    started, curve = time.monotonic(), []
    while process.poll() is None:
        sizes = [resident(pid) for pid in tree(process.pid)]
        curve.append((time.monotonic() - started, max(sizes), sum(sizes)))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    record = json.loads(next(runs.glob("memory/2*/run.json")).read_text())
    seconds = {name: stage["seconds"] for name, stage in record["stages"].items()}
    shutil.rmtree(runs)
    return Measured(what, seconds, curve)


def plot(measured: list[Measured]) -> str:
    """The largest process of each run over its time, from its start to its end."""
    wide, high, left, below = 640, 260, 60, 40
    most = 1.1 * max(each.largest for each in measured)
    colours = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7")
    lines = []
    for tick in range(0, int(most) + 1, 200):
        y = high - high * tick / most
        lines.append(f'<path d="M{left},{y:.0f} h{wide}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{tick}</text>')
    for number, (each, colour) in enumerate(zip(measured, colours, strict=False)):
        end = each.curve[-1][0]
        step = max(1, len(each.curve) // 400)
        points = " ".join(
            f"{left + wide * seconds / end:.1f},{high - high * process / most:.1f}"
            for seconds, process, _ in each.curve[::step]
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        label = f"{each.what} ({end:.0f} s)"
        x = left + 10 + number % 3 * 210
        y = high + 18 + number // 3 * 16
        lines.append(f'<text x="{x}" y="{y}" fill="{colour}">{html.escape(label)}</text>')
    lines.append('<text x="4" y="14">MB</text>')
    size = f'width="{left + wide + 10}" height="{high + below + 20}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(lines)}</svg>\n'


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("kind", choices=list(STAGES))
    command.add_argument("rows", type=int, nargs="+")
    command.add_argument("--workers", type=int, nargs="+", default=[1])
    command.add_argument("--plot", type=Path)
    options = command.parse_args()
    print("| rows | workers | ingest, s | stage, s | largest process, MB | all, MB |")
    print("|---:|---:|---:|---:|---:|---:|")
    measured = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            WRITERS[options.kind](Path(scratch), rows)
            for workers in options.workers:
                what = f"{rows:,} rows, {workers} worker{'s' * (workers > 1)}"
                each = measure(Path(scratch), options.kind, what, workers)
                measured.append(each)
                print(
                    f"| {rows:,} | {workers} | {each.seconds['rows']:.1f} | "
                    f"{each.seconds['second']:.1f} | {each.largest:.0f} | {each.together:.0f} |",
                    flush=True,
                )
    if options.plot is not None:
        options.plot.write_text(plot(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
