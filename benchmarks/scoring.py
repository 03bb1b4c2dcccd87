"""Scoring compared with the `sacrebleu` command: BLEU, chrF and TER of 10,000 segments.

Both run from files to printed scores, each in its own process, in turns. Memory is the peak of all
processes of a contender together, with shared pages counted once. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl

from stages.rows.shards import shard_name, write_table

STAGE = """
import sys, json
from pathlib import Path
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.score.stage import Score
from stages.score.options import ScoreConfig
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
events = Events(None, open("/dev/null", "w"))
artifact = loose_artifact(folder, rows=int(sys.argv[3]), properties={
    "tasks": {"translate": {"languages": {"target": "en"}, "labels": [], "modalities": ["text"]}},
    "scored_references": False, "diversity": False})
out = Path(sys.argv[4])
(out / "o").mkdir(parents=True); (out / "s").mkdir()
context = Context("score", 0, out, out / "o", out / "s", 1, events,
                  BeamJobs({"direct_num_workers": workers}, events))
config = ScoreConfig(metrics=["bleu", "chrf", "ter"], intervals=sys.argv[5] == "1", slices=[])
Score(config).run(context, {"predictions": (artifact,), "records": ()})
scores = json.loads((out / "o/scores.json").read_text())
print(json.dumps({s["metric"]: s["value"] for s in scores}))
"""


def held(process: int) -> float:
    """Memory of a process and its descendants in MB: the sum of their proportional set sizes."""
    total, waiting = 0, [process]
    while waiting:
        pid = waiting.pop()
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (OSError, IndexError):
            continue
    return total / 1024


def watched(arguments: list[str]) -> tuple[str, float]:
    """The output of a command, and its peak memory."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    most, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            most.append(held(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    printed, _ = process.communicate()
    stop.set()
    thread.join()
    if process.returncode:
        raise RuntimeError(f"{arguments[:3]} failed")
    return printed, max(most)


def segments(count: int, joined: int) -> tuple[list[str], list[str]]:
    """References of real length from the package's English sentences, and damaged hypotheses."""
    from pipelines.store.sources import package_folder

    data = json.loads((package_folder("hsk_sentences_audio") / "data/sentences.json").read_text())
    lines = [" ".join(row["translation"]["en"].split()) for row in data]
    source = random.Random(1)
    factors = [1, 7, 11][:joined]
    references = [" ".join(lines[n * by % len(lines)] for by in factors) for n in range(count)]
    hypotheses = []
    for line in references:
        words = [word for word in line.split() if source.random() > 0.15]
        if len(words) > 3 and source.random() < 0.5:
            cut = source.randrange(1, len(words))
            words = words[cut:] + words[:cut]
        hypotheses.append(" ".join(words))
    return hypotheses, references


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--segments", type=int, default=10_000)
    command.add_argument("--joined", type=int, default=2, help="sentences in a segment, up to 3")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    command.add_argument("--shards", type=int, default=4, help="files of the predictions")
    command.add_argument("--intervals", action="store_true", help="once more, with intervals")
    command.add_argument("--alone", action="store_true", help="without the sacrebleu command")
    options = command.parse_args()
    hypotheses, references = segments(options.segments, options.joined)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hyp").write_text("\n".join(hypotheses) + "\n")
        (folder / "ref").write_text("\n".join(references) + "\n")
        (folder / "rows").mkdir()
        table = pl.DataFrame(
            {
                "id": [str(n) for n in range(options.segments)], "task": "translate",
                "split": "test", "hypothesis": hypotheses, "reference": references,
            }
        )  # fmt: skip
        size = -(-options.segments // options.shards)
        for shard in range(options.shards):
            name = f"{shard_name(shard, options.shards)}.parquet"
            write_table(table[shard * size : (shard + 1) * size], folder / "rows" / name)
        del table, hypotheses, references

        def sacrebleu() -> tuple[dict[str, float], float]:
            arguments = [
                sys.executable, "-m", "sacrebleu", str(folder / "ref"), "-i", str(folder / "hyp"),
                "-m", "bleu", "chrf", "ter", "-w", "10", "-f", "json",
            ]  # fmt: skip
            printed, memory = watched(arguments)
            names = {"BLEU": "bleu", "chrF2": "chrf", "TER": "ter"}
            return {names[score["name"]]: score["score"] for score in json.loads(printed)}, memory

        def ours(workers: int, intervals: bool = False) -> tuple[dict[str, float], float]:
            with tempfile.TemporaryDirectory() as out:
                arguments = [
                    sys.executable, "-c", STAGE, str(folder), str(workers),
                    str(options.segments), out, str(int(intervals)),
                ]  # fmt: skip
                printed, memory = watched(arguments)
            return json.loads(printed), memory

        contenders: dict[str, Callable[[], tuple[dict[str, float], float]]] = {}
        if not options.alone:
            contenders["sacrebleu command"] = sacrebleu
        for workers in options.workers:
            contenders[f"score stage, {workers} workers"] = partial(ours, workers)
        if options.intervals:
            for workers in options.workers:
                label = f"score stage, {workers} workers, with intervals"
                contenders[label] = partial(ours, workers, True)
        seconds: dict[str, list[float]] = {label: [] for label in contenders}
        memory: dict[str, float] = {}
        values: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for label, run in contenders.items():
                started = time.perf_counter()
                scores, memory[label] = run()
                values[label] = {k: round(v, 10) for k, v in scores.items()}
                seconds[label].append(time.perf_counter() - started)
        first = next(iter(contenders))
        assert all(scores == values[first] for scores in values.values()), values
    base = statistics.median(seconds[first])
    print(f"| contender | seconds (median) | rounds | speed to {first} | MB |")
    print("|---|---:|---|---:|---:|")
    for label, times in seconds.items():
        listed = ", ".join(f"{value:.2f}" for value in times)
        median = statistics.median(times)
        print(f"| {label} | {median:.2f} | {listed} | {base / median:.2f} | {memory[label]:,.0f} |")


if __name__ == "__main__":
    main()
