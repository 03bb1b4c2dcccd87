"""Bulk decoding compared with CTranslate2 and Hugging Face generate, on the same weights.

2,000 sentences with the corpus's own lengths, in two shapes: the model as trained, and one as large
as Marian's base (see `widening.py`); greedily and with a beam of 4; fp32 and int8. If a contender
has several settings, each of them decodes a few times; then the contenders take turns, each with
its best setting. Their outputs are compared. Ratios are medians over rounds of the ratio within a
round. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from widening import widened

from exports.decoding.greedy import greedy
from exports.decoding.session import SessionStepper
from exports.making.graphs import export_graphs
from exports.making.quantization import quantize_graphs
from model.batching import Ragged
from model.modalities.target import text_limits
from model.networks.transformer import Transformer
from model.saved.folder import load_model
from model.saved.tensors import weights

PEERS = Path(__file__).parent / "peers"
TRIES = 2
"""Rounds over all settings; the setting with the fastest decoding takes part."""
COMPUTE = {"fp32": "float32", "int8": "int8"}
AGAINST: dict[str, tuple[str, dict[str, str]]] = {
    "ctranslate2": ("CTranslate2", {}),
    "ctranslate2-mkl": ("CTranslate2", {"CT2_USE_MKL": "1"}),
    "hugging-face": ("Hugging Face", {}),
}
"""The peer of each contender, and the environment that it runs in."""
FP32_ONLY = {"hugging-face"}


class Process:
    """The contenders of one process; see `peers/serving.py`."""

    def __init__(self, python: str, script: str, job: dict[str, Any], **environment: str) -> None:
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115
        json.dump(job, self.file)
        self.file.flush()
        self.process = subprocess.Popen(
            [python, str(PEERS / script), self.file.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(job["threads"]), **environment},
        )  # fmt: skip
        loaded = self.answer()
        self.names: list[str] = loaded["names"]
        self.start: float = loaded["seconds"]

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a contender's process ended")
        return json.loads(line)

    def decode(self, name: str, tokens: bool = False) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"name": name, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = self.answer()
        return answer

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def prepare(model: Transformer, folder: Path, source: Ragged) -> dict[str, Path]:
    """Graphs in both precisions, and the weights in the format that peers read."""
    paths = {"weights": folder / "weights.safetensors"}
    tensors = {name: tensor.contiguous() for name, tensor in weights(model).items()}
    save_file({**tensors, "positions": model.positions}, paths["weights"])
    for precision in COMPUTE:
        paths[precision] = folder / precision
        paths[precision].mkdir()
    export_graphs(model, paths["fp32"])
    rows = np.arange(0, len(source), max(1, len(source) // 128))

    def calibrate(stepper: SessionStepper) -> None:
        limits = text_limits(source.lengths[rows], model.max_length)
        greedy(stepper, {"text": source.padded(rows)}, limits)

    quantize_graphs(paths["fp32"], paths["int8"], calibrate)
    for precision in COMPUTE:  # Without preprocessing the translator would not load.
        (paths[precision] / "text").symlink_to((folder / "text").resolve())
    return paths


def products(model: Transformer, source: Ragged, targets: list[list[int]], beam: int) -> float:
    """Multiplications and additions in products with weights, without padding."""
    width, config = model.config.width, model.config
    layers = config.decoder_layers or config.layers
    encoder = config.layers * (4 * width**2 + 2 * width * config.hidden) + layers * 2 * width**2
    decoder = layers * (6 * width**2 + 2 * width * config.hidden)
    output = width * len(model.output_bias)
    tokens = sum(len(target) + 1 for target in targets)
    return 2.0 * (encoder * int(source.lengths.sum()) + beam * (decoder + output) * tokens)


def matrix_rate(threads: int) -> float:
    """Operations a second of PyTorch's fp32 matrix product, the best of several. This machine's
    speed changes: the best of all rounds is its peak."""
    torch.set_num_threads(threads)
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def compare(
    job: dict[str, Any], model: Transformer, source: Ragged, options: argparse.Namespace
) -> None:
    """Compares the contenders in one configuration, and prints a table."""
    processes = [Process(sys.executable, "ours.py", {**job, "name": "ours"})]
    if options.before:
        graphs = options.before / Path(job["graphs"]).relative_to(options.keep)
        before = {**job, "name": "ours before", "graphs": str(graphs.resolve())}
        processes.append(Process(sys.executable, "ours.py", before))
    for name in options.against if options.peers else ():
        if name in FP32_ONLY and job["compute"] != "float32":
            continue
        peer, environment = AGAINST[name]
        processes.append(Process(options.peers, "decode.py", {**job, "peer": peer}, **environment))
    chosen: list[tuple[Process, str]] = []
    texts: dict[str, list[list[int]]] = {}
    settings = [(process, name) for process in processes for name in process.names]
    tried: dict[str, list[float]] = {name: [] for _, name in settings}
    for process, name in settings:
        texts[name] = process.decode(name, tokens=True)["tokens"]
    tries = TRIES if len(settings) > len(processes) else 0
    for _ in range(tries):
        for process, name in settings:
            tried[name].append(process.decode(name)["seconds"])
    for process in processes:
        for name in process.names if tries else ():
            times = ", ".join(f"{seconds:.2f}" for seconds in tried[name])
            print(f"  tried {name}: {times} s", file=sys.stderr, flush=True)
        chosen.append((process, min(process.names, key=lambda name: min(tried[name], default=0.0))))
    seconds: dict[str, list[float]] = {name: [] for _, name in chosen}
    memory: dict[str, float] = {}
    peak = 0.0
    for _ in range(options.rounds):
        peak = max(peak, matrix_rate(job["threads"]))
        for process, name in chosen:
            result = process.decode(name)
            seconds[name].append(result["seconds"])
            memory[name] = result["memory"]
    first = chosen[0][1]
    expected = texts[first]
    work = products(model, source, expected, job["beam"])
    print(
        "| contender | sentences/s | ours is faster by | least – most | same | MB | start | peak |"
    )
    print("|---|---:|---:|---|---:|---:|---:|---:|")
    for process, name in chosen:
        median = statistics.median(seconds[name])
        ratios = [a / b for a, b in zip(seconds[name], seconds[first], strict=True)]
        same = sum(a[: len(b)] == b for a, b in zip(texts[name], expected, strict=True))
        print(
            f"| {name} | {len(source) / median:,.0f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} – {max(ratios):.2f} | {same / len(expected):.1%} | "
            f"{memory[name]:,.0f} | {process.start:.1f} s | {work / median / peak:.0%} |"
        )
    print(flush=True)
    for process in processes:
        process.close()


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("run", type=Path, nargs="?", help="a run of examples/zh-en.yaml")
    command.add_argument("--base", type=Path, help="another run, width 128 with 2 heads, to widen")
    command.add_argument("--peers", help="python with ctranslate2 4.8.5 and transformers 5")
    command.add_argument("--against", nargs="*", choices=list(AGAINST), default=list(AGAINST))
    command.add_argument("--rounds", type=int, default=10)
    command.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    command.add_argument("--beams", type=int, nargs="*", default=[1, 4])
    command.add_argument("--precisions", nargs="*", choices=list(COMPUTE), default=list(COMPUTE))
    command.add_argument("--sentences", type=int, default=2000)
    command.add_argument("--batch-tokens", type=int, nargs="*", default=[1024, 4096])
    command.add_argument("--keep", type=Path, help="an empty folder for the graphs that are made")
    command.add_argument("--before", type=Path, help="the --keep folder of another version: its "
                         "graphs take turns too")  # fmt: skip
    options = command.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options.keep = options.keep or Path(scratch)
        for shape, run in (("as trained", options.run), ("Marian base", options.base)):
            if run is None:
                continue
            stages = json.loads((run / "run.json").read_text())["stages"]
            runs = run.resolve().parent.parent
            folders = {facts["kind"]: runs / facts["artifact"] for facts in stages.values()}
            model, _, _ = load_model(folders["model"])
            assert isinstance(model, Transformer)
            if shape != "as trained":
                model = widened(folders["model"], 6, 512, 8, 32_000)
            paths = sorted(folders["features"].glob("rows/*"))
            table = pl.concat([pl.read_parquet(path) for path in paths])
            # Only sentences, which have a level; the dictionary's words have none.
            table = table.filter(pl.col("level").is_not_null()).sort("split", "id")
            rows = table["source_ids"].to_list()[: options.sentences]
            source = Ragged.of(rows)
            folder = options.keep / shape.replace(" ", "-")
            folder.mkdir(parents=True)
            (folder / "text").symlink_to((folders["graphs"] / "text").resolve())
            prepared = prepare(model, folder, source)
            config = model.config
            for precision, beam, threads in itertools.product(
                options.precisions, options.beams, options.threads
            ):
                print(
                    f"{shape} ({config.layers} + {config.decoder_layers or config.layers} layers, "
                    f"width {config.width}, {len(model.output_bias):,} pieces), {precision}, beam "
                    f"{beam}, {threads} threads, {len(source):,} sentences, {options.rounds} rounds"
                )
                job = {
                    "source": rows, "graphs": str(prepared[precision]), "beam": beam,
                    "weights": str(prepared["weights"]), "config": config.model_dump(),
                    "compute": COMPUTE[precision], "threads": threads,
                    "longest": 2 * int(source.lengths.max()) + 10,
                    "batch_tokens": options.batch_tokens,
                }  # fmt: skip
                compare(job, model, source, options)


if __name__ == "__main__":
    main()
