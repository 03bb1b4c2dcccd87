"""Scoring beside the `sacrebleu` command: BLEU, chrF and TER of 10,000 segments.

Both from files to printed scores, each in a process of its own, taking turns. See
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
import time
from pathlib import Path

import polars as pl

STAGE = """
import sys, json
from pathlib import Path
from pipelines.beam import Beam
from pipelines.events import Events
from pipelines.stage import Context
from pipelines.store import Artifact
from stages.score import Score, ScoreConfig
folder, workers = Path(sys.argv[1]), int(sys.argv[2])
events = Events(None, open("/dev/null", "w"))
artifact = Artifact(folder, {"rows": int(sys.argv[3]), "properties": {
    "tasks": {"translate": {"languages": {"target": "en"}, "labels": [], "modalities": ["text"]}},
    "scored_references": False, "diversity": False}})
out = Path(sys.argv[4])
(out / "o").mkdir(parents=True); (out / "s").mkdir()
context = Context("score", 0, out, out / "o", out / "s", 1, events,
                  Beam({"direct_num_workers": workers}, events))
config = ScoreConfig(metrics=["bleu", "chrf", "ter"], intervals=False, slices=[])
Score(config).run(context, {"predictions": (artifact,), "records": ()})
scores = json.loads((out / "o/scores.json").read_text())
print(json.dumps({s["metric"]: s["value"] for s in scores}))
"""


def segments(count: int) -> tuple[list[str], list[str]]:
    """References of real lengths made of the package's English words, and damaged hypotheses."""
    from stages.sources import package_folder

    data = json.loads((package_folder("hsk_sentences_audio") / "data/sentences.json").read_text())
    lines = [" ".join(row["translation"]["en"].split()) for row in data]
    source = random.Random(1)
    references = [f"{lines[n % len(lines)]} {lines[n * 7 % len(lines)]}" for n in range(count)]
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
    command.add_argument("--rounds", type=int, default=3)
    options = command.parse_args()
    hypotheses, references = segments(options.segments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hyp").write_text("\n".join(hypotheses) + "\n")
        (folder / "ref").write_text("\n".join(references) + "\n")
        (folder / "rows").mkdir()
        pl.DataFrame(
            {
                "id": [str(n) for n in range(options.segments)], "task": "translate",
                "split": "test", "hypothesis": hypotheses, "reference": references,
            }
        ).write_parquet(folder / "rows" / "00000-of-00001.parquet")  # fmt: skip

        def sacrebleu() -> dict[str, float]:
            arguments = [
                sys.executable, "-m", "sacrebleu", str(folder / "ref"), "-i", str(folder / "hyp"),
                "-m", "bleu", "chrf", "ter", "-w", "10", "-f", "json",
            ]  # fmt: skip
            printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
            names = {"BLEU": "bleu", "chrF2": "chrf", "TER": "ter"}
            return {names[score["name"]]: score["score"] for score in json.loads(printed)}

        def ours(workers: int) -> dict[str, float]:
            with tempfile.TemporaryDirectory() as out:
                arguments = [
                    sys.executable, "-c", STAGE, str(folder), str(workers),
                    str(options.segments), out,
                ]  # fmt: skip
                done = subprocess.run(arguments, capture_output=True, text=True, check=True)
            found: dict[str, float] = json.loads(done.stdout)
            return found

        contenders = {
            "sacrebleu command": sacrebleu,
            "score stage, 1 worker": lambda: ours(1),
            "score stage, 2 workers": lambda: ours(2),
        }
        seconds: dict[str, list[float]] = {label: [] for label in contenders}
        values: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for label, run in contenders.items():
                started = time.perf_counter()
                values[label] = {k: round(v, 10) for k, v in run().items()}
                seconds[label].append(time.perf_counter() - started)
        assert all(found == values["sacrebleu command"] for found in values.values()), values
    base = statistics.median(seconds["sacrebleu command"])
    print("| contender | seconds (median) | rounds | speed to sacrebleu |")
    print("|---|---:|---|---:|")
    for label, found in seconds.items():
        each = ", ".join(f"{value:.2f}" for value in found)
        median = statistics.median(found)
        print(f"| {label} | {median:.2f} | {each} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
