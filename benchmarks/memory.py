"""Memory and time of `ingest` and `text` for inputs of several sizes.

`python benchmarks/memory.py 50 500 2000 --workers 1 2`: megabytes of TSV. For each, the seconds of
both stages and the largest resident memory of any process of the run, looked at ten times a second.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = """\
name: memory
beam: {{direct_num_workers: {workers}}}
stages:
  rows:
    use: ingest
    source: rows.tsv
    columns: {{text: source, target: target}}
    split: {{valid: 1000, test: 1000}}
  text: {{records: rows, vocabulary: {{size: 4000}}}}
"""


def write_rows(path: Path, megabytes: int) -> int:
    """Different sentences of 5,000 words; returns how many."""
    chance = random.Random(1)
    words = [f"w{number}" for number in range(5000)]
    left, rows = megabytes * 1_000_000, 0
    with path.open("w", encoding="utf-8") as file:
        file.write("source\ttarget\n")
        while left > 0:
            source, target = (" ".join(chance.choices(words, k=n)) for n in (6, 7))
            line = f"{rows} {source}\t{target}\n"
            file.write(line)
            left, rows = left - len(line), rows + 1
    return rows


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


def measure(folder: Path, workers: int) -> tuple[dict[str, float], float, float]:
    """Seconds of each stage, the largest process and the largest sum of all, in megabytes."""
    (folder / "job.yaml").write_text(JOB.format(workers=workers))
    runs = folder / f"runs-{workers}"
    job = str(folder / "job.yaml")
    command = [sys.executable, "-m", "pipelines.run", job, "--runs-dir", str(runs)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    largest = together = 0.0
    while process.poll() is None:
        sizes = [resident(pid) for pid in tree(process.pid)]
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    record = json.loads(next(runs.glob("memory/2*/run.json")).read_text())
    seconds = {name: stage["seconds"] for name, stage in record["stages"].items()}
    return seconds, largest, together


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("megabytes", type=int, nargs="+")
    command.add_argument("--workers", type=int, nargs="+", default=[1])
    options = command.parse_args()
    print("| TSV | rows | workers | ingest, s | text, s | largest process, MB | all, MB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as scratch:
            rows = write_rows(Path(scratch) / "rows.tsv", megabytes)
            for workers in options.workers:
                seconds, largest, together = measure(Path(scratch), workers)
                print(
                    f"| {megabytes} MB | {rows:,} | {workers} | {seconds['rows']:.1f} | "
                    f"{seconds['text']:.1f} | {largest:.0f} | {together:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
