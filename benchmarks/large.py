"""A model of more than 2 GiB from fresh weights to decoded tokens, and the memory that it takes.

Each part runs in its own process, whose peak memory is printed with the size of the weights. The
tokens of the graphs are compared with PyTorch's. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from exports.decoding.greedy import greedy
from exports.decoding.session import SessionStepper
from exports.decoding.torch_stepper import TorchStepper
from exports.making.graphs import export_graphs
from model.configuration import TransformerConfig
from model.modalities.sources import text_sizes
from model.networks.transformer import Transformer

SOURCE = {"text": np.arange(4, 34).reshape(2, 15)}
LIMITS = np.full(2, 12)


def fresh(layers: int, width: int, vocabulary: int) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(layers=layers, width=width, heads=width // 64, max_length=256)
    return Transformer(config, text_sizes(vocabulary, vocabulary)).eval()


def part(name: str, shape: tuple[int, int, int], folder: Path) -> dict[str, object]:
    """Runs one part in this process, and measures it."""
    started = time.perf_counter()
    measured: dict[str, object] = {}
    if name == "onnx":
        hypotheses = greedy(SessionStepper(folder), SOURCE, LIMITS)
        measured["tokens"] = [hypothesis.tokens for hypothesis in hypotheses]
    else:
        model = fresh(*shape)
        measured["weights"] = sum(parameter.nbytes for parameter in model.parameters())
        measured["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        if name == "export":
            export_graphs(model, folder)
        else:
            hypotheses = greedy(TorchStepper(model), SOURCE, LIMITS)
            measured["tokens"] = [hypothesis.tokens for hypothesis in hypotheses]
    measured["seconds"] = time.perf_counter() - started
    measured["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return measured


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--layers", type=int, default=12)
    command.add_argument("--width", type=int, default=1792)
    command.add_argument("--vocabulary", type=int, default=32_000)
    command.add_argument("--part", choices=["export", "onnx", "pytorch"])
    command.add_argument("--folder", type=Path)
    options = command.parse_args()
    shape = (options.layers, options.width, options.vocabulary)
    if options.part:
        print(json.dumps(part(options.part, shape, options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for name in ("export", "onnx", "pytorch"):
            arguments = [*sys.argv, "--part", name, "--folder", folder]
            completed = subprocess.run(
                [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True
            )
            results[name] = json.loads(completed.stdout.splitlines()[-1])
        weights = results["export"]["weights"]
        files = {file.name: file.stat().st_size for file in sorted(Path(folder).iterdir())}
        print(f"{results['export']['parameters']:,} parameters, {weights / 1e9:.2f} GB in fp32")
        print("files: " + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in files.items()))
        print("| part | seconds | peak GB | times the weights |\n|---|---:|---:|---:|")
        for name, facts in results.items():
            peak = facts["peak"]
            print(f"| {name} | {facts['seconds']:.0f} | {peak / 1e9:.1f} | {peak / weights:.2f} |")
        same = results["onnx"]["tokens"] == results["pytorch"]["tokens"]
        print("the tokens are " + ("the same" if same else "NOT the same"))


if __name__ == "__main__":
    main()
