"""Train: features in, a complete model out; weights, configuration, vocabulary and curve."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from model.configuration import ModelConfig, TrainingConfig
from pipelines.options import choose
from pipelines.registry import load, names
from pipelines.stage import Context, Input, Inputs, Meter, Result, Stage

if TYPE_CHECKING:
    from model.contract import EncoderDecoder
    from model.text import TextProcessor
    from model.training import Progress
    from stages.features import Rows

VALIDATION_TOKENS = 4096
"""Padded source tokens in a batch of greedy decoding for validation BLEU."""


class TrainConfig(TrainingConfig):
    """The model, and how it is trained."""

    model: Annotated[
        SerializeAsAny[ModelConfig] | None,
        BeforeValidator(lambda value: value if value is None else choose("models", value)),
        Field(
            description="`use:` a registered model or package.module:Config, and its options; "
            "not with start:"
        ),
    ] = None


class Train(Stage):
    """Trains an encoder–decoder; a killed run resumes to the same weights."""

    Config: ClassVar[Any] = TrainConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "features": Input("features", "of text with the targets, of images, of audio", many=True),
        "start": Input("model", "to train further, instead of a new one", optional=True),
    }
    output: ClassVar[str] = "model"
    libraries: ClassVar[tuple[str, ...]] = (
        "torch",
        "numpy",
        "sacrebleu",
        "sentencepiece",
        "safetensors",
    )
    seeded: ClassVar[bool] = True

    def check(self, given: Collection[str]) -> None:
        if (self.config.model is None) == ("start" not in given):
            raise ValueError("say model: for a new model, or start: for one to train further")

    def plugins(self) -> Sequence[str]:
        if self.config.model is None:
            # Which network it is stands in the model; before that is made, it may be any.
            known = [load(target) for target in names("models").values()]
        else:
            known = [type(self.config.model)]
        return [
            target
            for kind in known
            for target in (kind.network, f"{kind.__module__}:{kind.__name__}")
        ]

    def run(self, context: Context, inputs: Inputs) -> Result:
        import torch

        from model.artifact import build, load_model, save_model
        from model.contract import parameter_count
        from model.training import Trainer, TrainingRows, best_device
        from pipelines.files import write_json
        from stages.features import FeatureSet

        config: TrainConfig = self.config
        features = FeatureSet.of(inputs["features"])
        shards = [str(path) for path in features.shards()]
        loaded = {split: features.paths.load(shards, split) for split in ("train", "valid")}
        train, valid = (
            TrainingRows(rows.source, rows.target, rows.table["task"].to_list())
            for rows in loaded.values()
        )
        processor = features.processor
        torch.set_num_threads(context.threads)
        torch.manual_seed(context.seed)
        if config.model is None:
            model, settings, made_for = load_model(inputs["start"][0].folder)
            if made_for.sizes != processor.sizes:
                raise ValueError(
                    "start: was made for other features than these; give the text stage its "
                    "model: too"
                )
        else:
            model, settings = build(config.model, processor.sizes), config.model
        for split, rows in loaded.items():
            _check(rows, split, settings.max_length)
            if len(rows.missing):
                context.progress.say(
                    f"{len(rows.missing):,} {split} rows are left out: a picture or sound of "
                    "theirs was rejected"
                )
        device = best_device()
        trainer = Trainer(
            model,
            config,
            train,
            valid,
            seed=context.seed,
            device=device,
            scratch=context.scratch,
            score=_score(loaded["valid"], features.tasks, processor.text)
            if config.select == "score"
            else None,
        )
        context.progress.say(
            f"{parameter_count(model):,} parameters, {len(train):,} training rows with "
            f"{int(train.target.lengths.sum()):,} target tokens, {trainer.precision} on {device}"
        )
        with context.progress.meter("trains", config.steps, "steps") as meter:
            curve = trainer.run(lambda progress: _show(progress, meter))
        save_model(context.output, settings, model, processor)
        write_json(context.output / "curve.json", curve)
        used = len(train) + len(valid)
        return Result(
            rows_in=used,
            rows=used,
            properties={
                "tasks": features.tasks,
                "sizes": processor.sizes,
                "parameters": parameter_count(model),
                "steps": trainer.progress.step,
            },
        )


def _show(progress: Progress, meter: Meter) -> None:
    note = ""
    if progress.curve:
        last = progress.curve[-1]
        note = f"loss {last['train_loss']:.3f}, validation {last['valid_loss']:.3f}"
        if "valid_score" in last:
            note += f", score {last['valid_score']:.1f}"
    meter.reach(progress.step, note)


def _check(rows: Rows, split: str, max_length: int) -> None:
    """Raises `ValueError` for no rows, or one that is longer than the model takes."""
    if not len(rows.table):
        raise ValueError(f"there are no {split} rows; give ingest a split: with {split}")
    longest = max(rows.source.longest, int(rows.target.lengths.max()))
    if longest > max_length:
        raise ValueError(
            f"a {split} row has {longest} positions, the model takes {max_length}: lower the text "
            "stage's filter.max_tokens or the audio stage's max_seconds, or raise model.max_length"
        )


def _score(
    rows: Rows, tasks: Mapping[str, Any], text: TextProcessor
) -> Callable[[EncoderDecoder], dict[str, float]]:
    """What validation says of each task, by greedy decoding: BLEU as the score stage computes it,
    or for tasks with labels the percentage that is right; and the mean over tasks."""
    import numpy as np
    from sacrebleu.metrics import BLEU

    from exports.decoding import greedy, in_batches, length_limits
    from exports.torch_stepper import TorchStepper
    from stages.languages import bleu_tokenizer

    source, references = rows.source, rows.table["reference"].to_list()
    of_task = np.array(rows.table["task"].to_list())

    def score(model: EncoderDecoder) -> dict[str, float]:
        stepper = TorchStepper(model)
        limits = length_limits(source.lengths.sum(axis=1), model.max_length)

        def decode(chosen: np.ndarray) -> list[list[int]]:
            found = greedy(stepper, source.collate(chosen), limits[chosen])
            return [hypothesis.tokens for hypothesis in found]

        texts = text.decode(in_batches(source.lengths, VALIDATION_TOKENS, decode))
        scores: dict[str, float] = {}
        for task in sorted(set(of_task.tolist())):
            chosen = np.flatnonzero(of_task == task)
            outputs = [texts[row] for row in chosen]
            wanted = [references[row] for row in chosen]
            if tasks[task]["labels"]:
                right = sum(a == b for a, b in zip(outputs, wanted, strict=True))
                scores[f"valid_accuracy.{task}"] = 100 * right / len(chosen)
            else:
                tokenizer = bleu_tokenizer(tasks[task]["languages"].get("target"))
                # On single words BLEU has no n-grams to count; effective order counts those it has.
                metric = BLEU(tokenize=tokenizer, effective_order=True)
                scores[f"valid_bleu.{task}"] = float(metric.corpus_score(outputs, [wanted]).score)
        return {**scores, "valid_score": float(np.mean(list(scores.values())))}

    return score
