"""Copy, reverse and sort strings of digits: the model learns the tasks, and decoding is correct.

Modelled on Sockeye's system tests. Required: at least 99 BLEU, through PyTorch and through ONNX,
token for token.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from exports.decoding.batches import in_batches
from exports.decoding.greedy import greedy
from exports.decoding.hypotheses import Hypothesis
from exports.decoding.torch_stepper import TorchStepper
from model.modalities.target import text_limits
from model.saved.folder import load_model
from stages.features.columns import ragged

JOB = """\
name: {task}
seed: 1
stages:
  rows:
    use: ingest
    source: {task}.tsv
    columns: {{text: source, target: target}}
    split: {{valid: 100, test: 200}}
    deduplicate: exact
  text: {{records: rows, vocabulary: {{size: 20, shared: true}}, filter: {{max_ratio: null}}}}
  train:
    features: text
    model: {{use: transformer, layers: 2, width: 64, heads: 4, dropout: 0.0}}
    steps: {steps}
    batch_tokens: 1500
    optimizer: muon
    learning_rate: 0.01
    warmup: 30
    schedule: cosine
    label_smoothing: 0.1
    validate_every: 100
  export: {{model: train, features: text}}
  generate: {{graphs: export, features: text}}
  score: {{predictions: generate}}
  report: {{scores: score}}
gates: ["bleu >= 99"]
"""


@pytest.mark.parametrize(
    ("task", "steps"), [("reverse", 300), pytest.param("sort", 300, marks=pytest.mark.long)]
)
def test_task_is_learnt_and_onnx_equals_pytorch(
    tmp_path: Path,
    digits: Callable[..., Path],
    run_pipeline: Callable[..., subprocess.CompletedProcess[str]],
    task: str,
    steps: int,
) -> None:
    digits(tmp_path, task, 6000, longest=10)
    job = tmp_path / f"{task}.yaml"
    job.write_text(JOB.format(task=task, steps=steps))
    run_pipeline(job, "--runs-dir", tmp_path / "runs")
    run = tmp_path / "runs" / task / "latest"
    stages = json.loads((run / "run.json").read_text())["stages"]
    folders = {name: tmp_path / "runs" / facts["artifact"] for name, facts in stages.items()}

    model, _, processor = load_model(folders["train"])
    text, stepper = processor.text, TorchStepper(model)
    test = pl.concat([pl.read_parquet(p) for p in sorted(folders["text"].glob("rows/*"))])
    test = test.filter(pl.col("split") == "test").sort("id")
    source = ragged(test["source_ids"])
    limits = text_limits(source.lengths, model.max_length)

    def decode(rows: np.ndarray) -> list[Hypothesis]:
        return greedy(stepper, {"text": source.padded(rows)}, limits[rows])

    decoded = in_batches(source.lengths, 1000, decode)
    predicted = pl.concat([pl.read_parquet(p) for p in sorted(folders["generate"].glob("rows/*"))])
    predicted = predicted.sort("id")
    assert predicted["id"].to_list() == test["id"].to_list()
    assert predicted["tokens"].to_list() == [row.tokens for row in decoded]
    assert predicted["hypothesis"].to_list() == text.decode([row.tokens for row in decoded])
    right = np.mean(predicted["hypothesis"].to_numpy() == predicted["reference"].to_numpy())
    assert right >= 0.95
