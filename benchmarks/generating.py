"""The generate stage compared with the decoder that it is built on.

Both decode the sentences of a run of `examples/zh-en.yaml`, each several times, in turns on the
same cores. The bare decoder turns token ids in memory into hypotheses in memory, by
`exports.decoding.translator`. The stage reads, decodes, turns tokens into text and writes, in Beam,
each round from loading the graphs to the finished shards. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from exports.decoding.beam_search import BeamSearch
from exports.decoding.translator import Translator
from pipelines.running.beam_jobs import BeamJobs, without_garbage_collection
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, read_artifact
from stages.features.feature_set import FeatureSet
from stages.generate.options import GenerateConfig, SearchConfig
from stages.generate.stage import Generate
from stages.rows.shards import write_table


def enlarged(features: Artifact, folder: Path, sentences: int) -> Artifact:
    """A text artifact with this many test rows: the rows of all splits, repeated."""
    (folder / "rows").mkdir(parents=True)
    (folder / "text").symlink_to((features.folder / "text").resolve())
    shards = features.files("rows/*.parquet")
    tables = [pl.read_parquet(path) for path in shards]
    total = sum(map(len, tables))
    copies = -(-sentences // total)
    for path, table in zip(shards, tables, strict=True):
        turns = [
            table.with_columns(id=pl.concat_str("id", pl.lit(f"-{turn}")), split=pl.lit("test"))
            for turn in range(copies)
        ]
        write_table(pl.concat(turns).head(sentences // len(shards)), folder / "rows" / path.name)
    return Artifact(folder, features.manifest)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("run", type=Path, help="a run of examples/zh-en.yaml")
    command.add_argument("--sentences", type=int, default=40_000)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument(
        "--workers", type=int, default=1, help="on two cores; a single worker uses threads"
    )
    command.add_argument("--beam", type=int, default=1)
    options = command.parse_args()
    stages = json.loads((options.run / "run.json").read_text())["stages"]
    runs = options.run.resolve().parent.parent
    artifacts = {
        artifact.kind: artifact
        for facts in stages.values()
        if (artifact := read_artifact(runs / facts["artifact"]))
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features = enlarged(artifacts["features"], folder / "features", options.sentences)
        search = SearchConfig(beam=options.beam)
        config = GenerateConfig(search=search, score_references=False, providers=["cpu"])
        events = Events(None, io.StringIO())
        beam = BeamJobs({"direct_num_workers": options.workers}, events)
        rows = FeatureSet.of([features]).paths.load(
            [str(p) for p in features.files("rows/*")], "test"
        )
        precision = artifacts["graphs"].properties["precision"]
        print(
            f"{len(rows.table):,} sentences, {precision}, beam {options.beam}, "
            f"{options.workers} workers"
        )

        def stage(turn: int) -> Callable[[], list[list[int]]]:
            out = folder / f"round-{turn}"
            for part in ("o", "s"):
                (out / part).mkdir(parents=True)
            context = Context("generate", 0, out, out / "o", out / "s", 2, events, beam)
            inputs = {"graphs": (artifacts["graphs"],), "features": (features,)}
            Generate(config).run(context, inputs)
            paths = sorted((out / "o").glob("rows/*"))
            return lambda: pl.concat(map(pl.read_parquet, paths))["tokens"].to_list()

        def bare(_: int) -> Callable[[], list[list[int]]]:
            width = BeamSearch(options.beam)
            translator = Translator(artifacts["graphs"].folder, ("cpu",), 2, beam=width)
            with without_garbage_collection():  # as the stage does
                searched = translator.search(rows.source)
            return lambda: [hypotheses[0].tokens for hypotheses in searched]

        contenders = {"decoder": bare, "stage": stage}
        seconds: dict[str, list[float]] = {label: [] for label in contenders}
        digests = {}
        for turn in range(options.rounds):
            for label, run in contenders.items():
                gc.collect()
                started = time.perf_counter()
                tokens = run(turn)
                seconds[label].append(time.perf_counter() - started)
                # Keep neither output: the collector would traverse it while the other is timed.
                digests[label] = hashlib.sha256(repr(tokens()).encode()).hexdigest()
                del tokens
            assert digests["stage"] == digests["decoder"]
    ratios = [b / a for a, b in zip(seconds["decoder"], seconds["stage"], strict=True)]
    print("| contender | seconds (median) | rounds | to the decoder |")
    print("|---|---:|---|---:|")
    for label, times in seconds.items():
        listed = ", ".join(f"{value:.2f}" for value in times)
        ratio = statistics.median(ratios) if label == "stage" else 1
        print(f"| {label} | {statistics.median(times):.2f} | {listed} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
