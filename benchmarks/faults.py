"""A run in an object store that fails: `python benchmarks/faults.py`.

A small job with every kind of step runs once for each fault, from an empty store and an empty
cache; one request in ten fails, or the store is away for some seconds, or everything at a time. The
server is moto's, on this machine. A row has the requests, how many failed, the seconds, the exit
code, and whether all results have the bytes of a run in a folder.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.conftest import SMALL
from tests.object_store import BUCKET, KINDS, Faults, ObjectStore, object_store


def write_job(folder: Path) -> Path:
    draw = random.Random(3)
    rows = {" ".join(draw.choices("0123456789", k=draw.randint(3, 8))) for _ in range(400)}
    lines = ["source\ttarget", *(f"{row}\t{row}" for row in sorted(rows)[:300])]
    (folder / "copy.tsv").write_text("\n".join(lines) + "\n")
    path = folder / "small.yaml"
    path.write_text(SMALL.format(name="small", steps=20, beam="{}", source="copy.tsv"))
    return path


def results(runs: Path) -> dict[str, bytes]:
    folder = runs / "store" / "artifacts"
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run(job: Path, runs: str, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "pipelines.run", str(job), "--runs-dir", runs]
    return subprocess.run(
        command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL
    ).returncode


def away(faults: Faults, seconds: float) -> None:
    """The server is gone for some seconds, twice."""

    def gone() -> None:
        for _ in range(2):
            time.sleep(6)
            faults.away = True
            time.sleep(seconds)
            faults.away = False

    threading.Thread(target=gone, daemon=True).start()


def row(what: str, number: int, job: Path, folder: Path, store: ObjectStore) -> str:
    faults = store.proxy.faults = Faults()
    if what in KINDS:
        draw = random.Random(number)
        faults.choose = lambda asked: what if draw.random() < 0.1 else None
    elif what == "everything":
        faults.some(seed=number, share=0.1)
    elif what.startswith("away"):
        away(faults, float(what.split()[1]))
    cache = folder / f"cache-{number}"
    started = time.monotonic()
    environment = {**store.environment, "PIPELINES_CACHE": str(cache)}
    code = run(job, f"s3://{BUCKET}/{number}", environment)
    seconds = time.monotonic() - started
    made = next(iter(cache.iterdir()))
    same = "yes" if results(made) == results(folder / "runs") else "NO"
    failed = sum(faults.made.values())
    return f"| {what} | {faults.requests} | {failed} | {seconds:.1f} | {code} | {same} |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch, object_store() as store:
        folder = Path(scratch)
        job = write_job(folder)
        started = time.monotonic()
        assert run(job, str(folder / "runs"), {}) == 0
        print(f"in a folder: {time.monotonic() - started:.1f} s")
        print("| fault | requests | failed | seconds | exit code | same bytes |")
        print("|---|---:|---:|---:|---:|---|")
        wanted = ["none", *KINDS, "away 5 s", "away 20 s", "everything"]
        for number, what in enumerate(wanted):
            print(row(what, number, job, folder, store), flush=True)


if __name__ == "__main__":
    main()
