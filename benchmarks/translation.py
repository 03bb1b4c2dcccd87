"""Bulk greedy translation beside CTranslate2 and Hugging Face generate, on the same weights.

2,000 sentences with the corpus' own lengths; contenders take turns; every contender's tokens are
compared with ours. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from exports.translator import Translator
from model.batching import Ragged
from model.sources import SourceRows

PEERS = Path(__file__).parent / "peers"


class Peers:
    """The process of the other contenders."""

    def __init__(self, python: str, job: dict[str, Any]) -> None:
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115
        json.dump(job, self.file)
        self.file.flush()
        self.process = subprocess.Popen(
            [python, str(PEERS / "decode.py"), self.file.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(job["threads"])},
        )  # fmt: skip
        self.names: list[str] = self.answer()

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peers' process ended")
        return json.loads(line)

    def decode(self, name: str, tokens: bool = False) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"name": name, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = self.answer()
        return found


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("run", type=Path, help="a run of examples/zh-en.yaml: runs/zh-en/latest")
    command.add_argument("--peers", help="python with ctranslate2 4.8.5 and transformers 5")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    command.add_argument("--sentences", type=int, default=2000)
    command.add_argument("--batch-tokens", type=int, nargs="*", default=[1024, 2048, 4096])
    options = command.parse_args()
    runs = options.run.resolve().parent.parent
    stages = json.loads((options.run / "run.json").read_text())["stages"]
    folders = {facts["kind"]: runs / facts["artifact"] for facts in stages.values()}
    table = pl.concat([pl.read_parquet(p) for p in sorted(folders["features"].glob("rows/*"))])
    # Sentences, not the dictionary's words: those have a level.
    rows = table.filter(pl.col("level").is_not_null()).sort("split", "id")["source_ids"].to_list()
    source = Ragged.of(rows[: options.sentences])
    model = json.loads((folders["model"] / "model.json").read_text())
    job = {
        "weights": str(folders["model"] / "weights.safetensors"), "config": model["options"],
        "source": rows[: options.sentences], "threads": options.threads, "device": "cpu",
        "longest": 2 * int(source.lengths.max()) + 10,
    }  # fmt: skip
    contenders: dict[str, Callable[[], float]] = {}
    expected: list[list[int]] = []

    def timed(translator: Translator) -> float:
        started = time.perf_counter()
        found = translator.decode(SourceRows(source))
        seconds = time.perf_counter() - started
        expected[:] = [row.tokens for row in found]
        return seconds

    for size in options.batch_tokens:
        translator = Translator(folders["graphs"], ("cpu",), options.threads, size)
        contenders[f"ours, {size} tokens"] = lambda t=translator: timed(t)
    agree: dict[str, float] = {}
    if options.peers:
        peers = Peers(options.peers, job)
        for name in peers.names:
            contenders[name] = lambda n=name: float(peers.decode(n)["seconds"])
    for run in contenders.values():
        run()
    if options.peers:
        for name in peers.names:
            found = peers.decode(name, tokens=True)["tokens"]
            pairs = zip(found, expected, strict=True)
            agree[name] = sum(a[: len(b)] == b for a, b in pairs) / len(expected)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
            print(f"round {round_ + 1}: {name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    peers_best = min(
        (statistics.median(s) for name, s in seconds.items() if not name.startswith("ours")),
        default=float("nan"),
    )
    count = len(source)
    print(
        f"{count} sentences, {int(source.lengths.sum())} source tokens, {options.threads} threads"
    )
    print("| contender | sentences/s (median) | seconds of each round | to the best peer | same |")
    print("|---|---:|---|---:|---:|")
    for name, found in seconds.items():
        median = statistics.median(found)
        each = ", ".join(f"{value:.2f}" for value in found)
        same = f"{agree[name]:.1%}" if name in agree else ""
        print(f"| {name} | {count / median:,.0f} | {each} | {peers_best / median:.2f} | {same} |")


if __name__ == "__main__":
    main()
