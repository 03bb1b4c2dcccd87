"""Ways to meet a wish, beside each other: the future head, control tokens, PPLM, the best of draws.

Takes a finished run of a job with one wish, `examples/wishes.yaml` or `examples/levels.yaml`, whose
head learnt it (`--set train.tell_wishes=0`): its trade-off has outputs without a wish, the best of
several draws, and the future head's. Added here are, for the same test rows and by the same judge:

- control tokens: the same network, trained as long on the same rows, whose sources begin with a
  token for what the target is (or for nobody knows); the wish is the token;
- PPLM (Dathathri et al., 2020): steps of normalised gradient on the decoder's last state, towards
  the probability of the wish by the same future head, with their penalty of the divergence.

Both decode the whole test split greedily, in PyTorch; the trade-off's rows are those that the run
decoded with its graphs. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from torch import Tensor

from benchmarks.runs import artifacts_of, rows_of
from exports.decoding.batches import in_batches
from exports.decoding.greedy import greedy
from exports.decoding.torch_stepper import TorchStepper
from model.batching import Ragged
from model.configuration import TrainingConfig
from model.contract import EncoderDecoder, Tensors
from model.modalities.sources import SourceRows
from model.modalities.target import TargetCodec
from model.names import WISH
from model.saved.folder import build, load_model
from model.training.loop import Trainer
from model.training.rows import TrainingRows
from model.wishes import Wishes
from stages.judges import WishJudge
from stages.measures.metrics import bleu_tokenizer
from stages.score.segments import TaskScoring
from stages.score.tradeoff import Outputs

PPLM_STEPS, PPLM_SIZES, PPLM_DIVERGENCE = 3, (0.5, 1.0, 2.0, 4.0), 0.01
"""Steps at each token, their lengths, and the weight of the divergence, which is the paper's."""


@dataclass(frozen=True)
class Job:
    """A finished run, and what its pipeline file says."""

    artifacts: dict[str, Path]
    declared: dict[str, Any]

    @classmethod
    def of(cls, run: Path, pipeline: Path) -> Job:
        text = pipeline.read_text()
        for name, value in (yaml.safe_load(text).get("variables") or {}).items():
            text = text.replace("${" + name + "}", value.replace("\\", "\\\\"))
        return cls(artifacts_of(run), yaml.safe_load(text)["stages"])

    def rows(self, split: str) -> pl.DataFrame:
        return rows_of(self.artifacts["text"]).filter(pl.col("split") == split)


def sources(table: pl.DataFrame) -> Ragged:
    return Ragged.of(table["source_ids"].to_list())


def with_token(source: Ragged, tokens: Sequence[int]) -> Ragged:
    return Ragged.of([[token, *source.row(row)] for row, token in enumerate(tokens)])


def controlled(job: Job, column: str, wishes: Wishes, steps: int | None) -> EncoderDecoder:
    """A network that was trained with control tokens, numbered after the source's subwords: one
    for each value, and the last for nobody knows."""
    (values,) = wishes.values.values()
    _, config, processor = load_model(job.artifacts["train"])
    first = processor.sizes["source"]
    declared = job.declared["train"]
    options = {name: declared[name] for name in TrainingConfig.model_fields if name in declared}
    training = TrainingConfig.model_validate(options)
    if steps is not None:
        training = training.model_copy(update={"steps": steps, "validate_every": steps})
    rows = {}
    for split in ("train", "valid"):
        table = job.rows(split)
        number = {value: first + index for index, value in enumerate(values)}
        tokens = [
            number.get(value, first + len(values))
            for value in table[column].cast(pl.String).to_list()
        ]
        text = SourceRows(with_token(sources(table), tokens))
        rows[split] = TrainingRows(text, Ragged.of(table["target_ids"].to_list()))
        if split == "train":
            times = pl.col("corpus").replace_strict(
                declared["oversample"]["corpus"], default=1, return_dtype=pl.Int64
            )
            rows[split] = replace(rows[split], times=table.select(times).to_series().to_numpy())
    torch.manual_seed(17)
    model = build(config, {**processor.sizes, "source": first + len(values) + 1})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model, training, rows["train"], rows["valid"],
            seed=17, device=torch.device("cpu"), scratch=Path(folder),
        )  # fmt: skip
        trainer.run(lambda _: None)
    return model.eval()


def push(model: EncoderDecoder, size: float) -> None:
    """Lets a model with a head for wishes move its last states towards them, as PPLM does."""
    head, network = model.future, model
    assert head is not None

    def wished(
        logits: Tensor, states: Tensor, memory: Tensors, cache: Tensors
    ) -> tuple[Tensor, Tensors]:
        with torch.inference_mode(False), torch.enable_grad():
            moved, wish, before = states.clone(), memory[WISH].clone(), logits.clone()
            before = before.log_softmax(-1)
            for _ in range(PPLM_STEPS):
                moved = moved.detach().requires_grad_()
                now = network.logits(moved).log_softmax(-1)  # type: ignore[operator]
                # The probability of the wish, whatever the next token is.
                met = torch.logsumexp(now + head.chances(moved, wish)[:, :, 0], dim=-1)
                divergence = (now.exp() * (now - before)).sum(-1)
                objective = (met - PPLM_DIVERGENCE * divergence).sum()
                (gradient,) = torch.autograd.grad(objective, moved)
                moved = moved + size * gradient / gradient.norm(dim=-1, keepdim=True).clamp(1e-9)
            return network.logits(moved.detach()), cache  # type: ignore[operator]

    model.wished = wished  # type: ignore[method-assign]


def decode(model: EncoderDecoder, source: SourceRows, target: TargetCodec) -> list[str]:
    stepper = TorchStepper(model)
    limits = target.limits(source.lengths.sum(axis=1), model.max_length)

    def some(rows: np.ndarray) -> list[Any]:
        return greedy(stepper, source.collate(rows), limits[rows])

    return target.decode([each.tokens for each in in_batches(source.lengths, 2048, some)])


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("run", type=Path, help="a run's folder: runs/wishes/latest")
    command.add_argument("pipeline", type=Path, help="its pipeline file")
    command.add_argument("--steps", type=int, help="of the training with control tokens")
    options = command.parse_args()
    job = Job.of(options.run, options.pipeline)
    model, _, processor = load_model(job.artifacts["train"])
    if model.future is None:
        raise SystemExit("the model has no head: run the job with --set train.tell_wishes=0")
    wishes = model.future.wishes
    (wish, values), *_ = wishes.values.items()
    column = job.declared["train"]["wishes"][wish]["column"]
    judge = WishJudge.model_validate(job.declared["score"]["judges"][wish])
    table = job.rows("test")
    further = tuple(name for name in ("target_2", "target_3", "target_4") if name in table.columns)
    language = job.declared["sentences"]["languages"]["target"]
    scoring = TaskScoring(("bleu",), bleu_tokenizer(language), (), further)
    target = processor.target

    def shown(name: str, strength: float, value: str, outputs: Sequence[str]) -> None:
        made = table.select("id", "reference", *further).with_columns(
            sample=pl.lit(0), hypothesis=pl.Series(outputs, dtype=pl.String)
        )
        found = Outputs(made, scoring, judge, value)
        figures = found.values()
        print(
            f"| {name} | {value} | {strength:g} | {found.rows} | {100 * figures['met']:.1f} "
            f"| {figures.get('bleu', float('nan')):.1f} |",
            flush=True,
        )

    print("| outputs | value | strength | rows | met | BLEU |\n|---|---|---:|---:|---:|---:|")
    for entry in known(job):
        print(
            f"| {entry['kind']} | {entry['value']} | {entry['strength']:g} | {entry['rows']} "
            f"| {100 * entry['met']:.1f} | {entry['bleu']:.1f} |"
        )
    plain = SourceRows(sources(table))
    for size in PPLM_SIZES:
        push(model, size)
        for value in values:
            wanted = wishes.strengths([{wish: value}] * len(table), 1)
            shown("PPLM", size, value, decode(model, replace(plain, wish=wanted), target))
    network = controlled(job, column, wishes, options.steps)
    first = processor.sizes["source"]
    for number, value in enumerate((*values, "nobody knows")):
        source = SourceRows(with_token(sources(table), [first + number] * len(table)))
        outputs = decode(network, source, target)
        for asked in (value,) if value in values else values:
            name = "control token" if value in values else "control token of nobody knows"
            shown(name, 1, asked, outputs)


def known(job: Job) -> Iterator[dict[str, Any]]:
    for entry in json.loads((job.artifacts["score"] / "tradeoff.json").read_text()):
        if entry["split"] == "test":
            yield entry


if __name__ == "__main__":
    main()
