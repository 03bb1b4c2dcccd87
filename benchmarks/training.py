"""Training throughput in target tokens a second, compared with JoeyNMT and Hugging Face's Trainer.

The same rows (the default job's features), the same sizes, label smoothing, clipping and AdamW;
contenders take turns, and the median of the rounds counts. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import re
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

from benchmarks.joeynmt import write_job
from benchmarks.runs import rows_of
from model.configuration import TrainingConfig, TransformerConfig
from model.modalities.sources import SourceRows, text_sizes
from model.saved.folder import build
from model.training.loader import Ahead, steps_of
from model.training.loop import Trainer
from model.training.rows import TrainingRows
from stages.features.columns import ragged

PEERS = Path(__file__).parent / "peers"
SIZES = {"layers": 3, "width": 192, "heads": 4, "dropout": 0.3}


def ours(table: pl.DataFrame, job: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(job["threads"])
    torch.manual_seed(1)
    rows = TrainingRows(SourceRows(ragged(table["source_ids"])), ragged(table["target_ids"]))
    sizes = text_sizes(job["source_vocabulary"], job["target_vocabulary"])
    config = TrainingConfig(
        steps=10**6, batch_tokens=job["batch_tokens"], precision=job["precision"], select="loss"
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            build(TransformerConfig(**SIZES), sizes), config, rows, rows,
            seed=1, device=torch.device(job["device"]), scratch=Path(folder),
        )  # fmt: skip
        with Ahead(steps_of(rows, rows.steps(config, 1), trainer.numbers)) as steps:
            for _ in range(job["skip"]):
                trainer.update(steps.next())
            if job["device"] == "cuda":
                torch.cuda.synchronize()
            trainer.progress.tokens = 0
            started = time.perf_counter()
            for _ in range(job["steps"]):
                trainer.update(steps.next())
            if job["device"] == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
    return {"tokens": trainer.progress.tokens, "seconds": seconds}


def hugging_face(python: str, job: dict[str, Any]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        command = [python, str(PEERS / "hf_train.py"), file.name]
        completed = subprocess.run(command, capture_output=True, text=True)
        if completed.returncode:
            raise RuntimeError(completed.stderr[-3000:])
        printed = completed.stdout
    result: dict[str, float] = json.loads(printed.strip().splitlines()[-1])
    return result


def joeynmt(python: str, table: pl.DataFrame, job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second from JoeyNMT's own log, without its first report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_job(
            folder,
            table.select("source_ids", "target_ids").iter_rows(),
            {**SIZES, "decoder_layers": SIZES["layers"], "hidden": 4 * SIZES["width"]},
            {
                "batch_size": job["batch_tokens"], "batch_type": "token", "learning_rate": 1e-3,
                "learning_rate_warmup": 200, "updates": 2 * job["steps"],
                "logging_freq": job["steps"], "validation_freq": 1000 * job["steps"],
            },
            {"beam_size": 1},
            cuda=job["device"] == "cuda",
        )  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(job["threads"]), "PATH": "/usr/bin:/bin"}
        command = [python, "-m", "joeynmt", "train", str(path), "--skip-test"]
        completed = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=threads)
        speeds = re.findall(r"Tokens per Sec: +(\d+)", completed.stdout + completed.stderr)
        if len(speeds) < 2:
            raise RuntimeError((completed.stdout + completed.stderr)[-3000:])
    return {"tokens": float(speeds[-1]), "seconds": 1.0}


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument(
        "features", type=Path, help="a features artifact: runs/store/artifacts/text-…"
    )
    command.add_argument("--hf", help="python of an environment with transformers and accelerate")
    command.add_argument("--joey", help="python of an environment with joeynmt 2.3")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--steps", type=int, default=60)
    command.add_argument("--threads", type=int, default=torch.get_num_threads())
    command.add_argument("--batch-tokens", type=int, default=1500)
    command.add_argument("--device", default="cpu")
    for name, default in SIZES.items():
        command.add_argument(f"--{name}", type=type(default), default=default)
    options = command.parse_args()
    SIZES.update({name: getattr(options, name) for name in SIZES})
    table = rows_of(options.features).filter(pl.col("split") == "train")
    manifest = json.loads((options.features / "manifest.json").read_text())
    vocabulary = manifest["properties"]["sizes"]
    lengths = table["target_ids"].list.len().to_numpy()
    job = {
        **SIZES,
        "source_vocabulary": vocabulary["source"], "target_vocabulary": vocabulary["target"],
        "batch_tokens": options.batch_tokens, "device": options.device,
        "sentences": max(1, round(options.batch_tokens / float(np.mean(lengths)))),
        "steps": options.steps, "skip": 10, "threads": options.threads,
    }  # fmt: skip
    rows = [
        {"source": source, "target": target}
        for source, target in table.select("source_ids", "target_ids").iter_rows()
    ]
    contenders: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        settings = {**job, "precision": precision}
        contenders[f"ours, {precision}"] = lambda s=settings: ours(table, s)
        if options.hf:
            with_rows = {**settings, "rows": rows}
            contenders[f"Hugging Face Trainer, {precision}"] = lambda s=with_rows: hugging_face(
                options.hf, s
            )
    if options.joey:
        contenders["JoeyNMT, fp32"] = lambda: joeynmt(options.joey, table, job)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds):
        for name, run in contenders.items():
            result = run()
            speeds[name].append(result["tokens"] / result["seconds"])
            print(f"round {round_ + 1}: {name}: {speeds[name][-1]:,.0f}", file=sys.stderr)
    best_peer = max(
        (statistics.median(rates) for name, rates in speeds.items() if not name.startswith("ours")),
        default=float("nan"),
    )
    print("| contender | target tokens/s (median) | rounds | to the best peer |")
    print("|---|---:|---|---:|")
    for name, rates in speeds.items():
        median = statistics.median(rates)
        listed = ", ".join(f"{speed:,.0f}" for speed in rates)
        print(f"| {name} | {median:,.0f} | {listed} | {median / best_peer:.2f} |")


if __name__ == "__main__":
    main()
