"""A job of JoeyNMT 2.3: its files and its configuration, for several benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def words(ids: Sequence[int]) -> str:
    """Subwords as words, which JoeyNMT does not cut further."""
    return " ".join(f"t{number}" for number in ids)


def write_job(
    folder: Path,
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]],
    size: Mapping[str, Any],
    training: Mapping[str, Any],
    testing: Mapping[str, Any],
    *,
    cuda: bool = False,
) -> Path:
    """Writes training data and `config.yaml`, whose path is returned.

    Args:
        pairs: ids of the subwords of sources and targets, with EOS.
        size: `layers`, `decoder_layers`, `width`, `heads`, `hidden` and `dropout`.
        training, testing: what the job adds to the sections with these names.
    """
    for side, rows in zip(("src", "trg"), zip(*pairs, strict=True), strict=True):
        lines = [words(row[:-1]) for row in rows]
        (folder / f"train.{side}").write_text("\n".join(lines) + "\n")
        (folder / f"dev.{side}").write_text("\n".join(lines[:20]) + "\n")
        known = sorted({word for line in lines for word in line.split()})
        (folder / f"vocab.{side}").write_text("\n".join(known) + "\n")

    def half(layers: int) -> dict[str, Any]:
        return {
            "type": "transformer", "num_layers": layers, "num_heads": size["heads"],
            "hidden_size": size["width"], "ff_size": size["hidden"], "dropout": size["dropout"],
            "layer_norm": "pre",
            "embeddings": {"embedding_dim": size["width"], "scale": True, "dropout": 0.0},
        }  # fmt: skip

    options = {"lowercase": False, "level": "word", "max_length": 500, "tokenizer_type": "none"}
    config = {
        "name": "bench", "joeynmt_version": "2.3.0", "model_dir": str(folder / "model"),
        "use_cuda": cuda, "fp16": False, "random_seed": 1,
        "data": {
            "train": str(folder / "train"), "dev": str(folder / "dev"), "dataset_type": "plain",
            "src": {"lang": "src", "voc_file": str(folder / "vocab.src"), **options},
            "trg": {"lang": "trg", "voc_file": str(folder / "vocab.trg"), **options},
        },
        "testing": {"eval_metrics": [], **testing},
        "training": {
            "optimizer": "adamw", "scheduling": "warmupinversesquareroot", "label_smoothing": 0.1,
            "loss": "crossentropy", "clip_grad_norm": 1.0, "weight_decay": 0.01, "epochs": 1000,
            "early_stopping_metric": "loss", "keep_best_ckpts": 1, "overwrite": True,
            "shuffle": True, "normalization": "tokens", **training,
        },
        "model": {
            "tied_softmax": True, "initializer": "xavier_uniform",
            "encoder": half(size["layers"]), "decoder": half(size["decoder_layers"]),
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
