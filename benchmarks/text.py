"""The text stage compared with a plain Python loop that does the same, row by row.

Both normalise, drop control characters, filter by length and script, and cut into subwords with the
same model. The script checks that both give the same ids. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import sentencepiece

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import loose_artifact
from stages.text import work as stage
from stages.text.options import TextConfig
from stages.text.stage import Text

CONTROL = {"Cc", "Cf", "Co", "Cn"}
TASK: dict[str, Any] = {
    "languages": {"text": "zh", "target": "en"},
    "labels": [],
    "modalities": ["text"],
}
OPTIONS: dict[str, Any] = {
    "normalize": {"source": "nfkc"},
    "vocabulary": {"size": 2000},
    "filter": {"script": {"source": "Han", "target": "Latin"}},
}
HAN = re.compile(r"[\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff]")


def single_line(text: str) -> str:
    text = " ".join(text.split())
    cleaned = "".join(" " if unicodedata.category(c) in CONTROL else c for c in text)
    return " ".join(cleaned.split())


def plain_loop(rows: list[tuple[str, str]], folder: Path) -> list[tuple[list[int], list[int]]]:
    """A straightforward loop."""
    source = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    target = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))
    encoded = []
    for left, right in rows:
        if max(len(left), len(right)) > 2000:
            continue
        left = single_line(unicodedata.normalize("NFKC", single_line(left)))
        right = single_line(unicodedata.normalize("NFC", single_line(right)))
        if not left or not right:
            continue
        letters = sum(c.isalpha() for c in left)
        if 2 * len(HAN.findall(left)) < letters:
            continue
        letters = sum(c.isalpha() for c in right)
        latin = sum(c.isalpha() and "LATIN" in unicodedata.name(c, "") for c in right)
        if 2 * latin < letters:
            continue
        left_ids, right_ids = [*source.encode(left), 2], [*target.encode(right), 2]
        longest, shortest = max(len(left_ids), len(right_ids)), min(len(left_ids), len(right_ids))
        if longest > 250 or longest > 9 * shortest:
            continue
        encoded.append((left_ids, right_ids))
    return encoded


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("records", type=Path, help="a records artifact: …/artifacts/sentences-…")
    command.add_argument("--rows", type=int, default=100_000)
    command.add_argument("--rounds", type=int, default=3)
    options = command.parse_args()
    table = pl.concat([pl.read_parquet(p) for p in sorted(options.records.glob("rows/*"))])
    table = table.filter(pl.col("level").is_not_null())
    copies = -(-options.rows // len(table))
    table = pl.concat([table.with_columns(id=pl.col("id") + f"-{n}") for n in range(copies)])
    table = table.head(options.rows)
    rows = list(table.select("text", "target").iter_rows())
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "records/rows").mkdir(parents=True)
        for shard in range(4):
            path = folder / f"records/rows/{shard:05d}-of-00004.parquet"
            table.gather_every(4, shard).write_parquet(path)
        records = loose_artifact(
            folder / "records",
            rows=len(table),
            digest="0" * 64,
            properties={"tasks": {"translate": TASK}},
        )
        train = stage._train_vocabulary
        for round_ in range(options.rounds):
            for workers in (1, 2):
                output = folder / f"out-{round_}-{workers}"
                (output / "o").mkdir(parents=True)
                (output / "s").mkdir()
                events = Events(None, io.StringIO())
                context = Context(
                    "text", 0, folder, output / "o", output / "s", 1, events,
                    BeamJobs({"direct_num_workers": workers}, events),
                )  # fmt: skip
                training = SimpleNamespace(seconds=0.0)

                def timed(*arguments: Any, clock: SimpleNamespace = training) -> None:
                    began = time.perf_counter()
                    train(*arguments)
                    clock.seconds = time.perf_counter() - began

                # The loop trains no vocabulary, so the stage's time for training is subtracted.
                setattr(stage, "_train_vocabulary", timed)  # noqa: B010
                started = time.perf_counter()
                Text(TextConfig.model_validate(OPTIONS)).run(
                    context, {"records": (records,), "model": ()}
                )
                spent = time.perf_counter() - started - training.seconds
                label = f"text stage, {workers} worker{'s' if workers > 1 else ''}"
                seconds.setdefault(label, []).append(spent)
            started = time.perf_counter()
            expected = plain_loop(rows, output / "o" / "text")
            seconds.setdefault("plain Python loop", []).append(time.perf_counter() - started)
        output_rows = pl.concat([pl.read_parquet(p) for p in sorted((output / "o/rows").glob("*"))])
        pairs = sorted(output_rows.select("source_ids", "target_ids").rows())
        assert pairs == sorted(expected), "the loop and the stage differ"
    base = statistics.median(seconds["plain Python loop"])
    print(f"{len(rows):,} rows", file=sys.stderr)
    print("| contender | rows/s (median) | seconds of each round | speed to the loop |")
    print("|---|---:|---|---:|")
    for label, times in seconds.items():
        median = statistics.median(times)
        listed = ", ".join(f"{value:.2f}" for value in times)
        print(f"| {label} | {len(rows) / median:,.0f} | {listed} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
