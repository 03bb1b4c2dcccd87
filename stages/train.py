"""Train: features in, a complete model out; weights, configuration, vocabulary and curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from model.configuration import ModelConfig, TrainingConfig
from pipelines.options import choose
from pipelines.stage import Context, Input, Inputs, Meter, Result, Stage

if TYPE_CHECKING:
    import polars as pl

    from model.contract import EncoderDecoder
    from model.text import TextProcessor
    from model.training import Progress, TrainingRows

VALIDATION_TOKENS = 4096
"""Padded source tokens in a batch of greedy decoding for validation BLEU."""


class TrainConfig(TrainingConfig):
    """The model, and how it is trained."""

    model: Annotated[
        SerializeAsAny[ModelConfig],
        BeforeValidator(lambda value: choose("models", value)),
        Field(description="`use:` a registered model or package.module:Config, and its options"),
    ]


class Train(Stage):
    """Trains an encoder–decoder; a killed run resumes to the same weights."""

    Config: ClassVar[Any] = TrainConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "features": Input("features", "token ids, with a training and a validation split")
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

    def plugins(self) -> Sequence[str]:
        config = type(self.config.model)
        return (config.network, f"{config.__module__}:{config.__name__}")

    def run(self, context: Context, inputs: Inputs) -> Result:
        import torch

        from model.artifact import build, save_model
        from model.contract import parameter_count
        from model.text import TextProcessor
        from model.training import Trainer, best_device
        from pipelines.files import write_json
        from stages.rows import read_rows

        config: TrainConfig = self.config
        (features,) = inputs["features"]
        table = read_rows(features, ["split", "source_ids", "target_ids", "reference"])
        train = _rows(table, "train", config.model.max_length)
        valid = _rows(table, "valid", config.model.max_length)
        text = TextProcessor.load(features.folder / "text")
        torch.set_num_threads(context.threads)
        torch.manual_seed(context.seed)
        model = build(config.model, text.vocabulary)
        device = best_device()
        references = table.filter(table["split"] == "valid")["reference"].to_list()
        trainer = Trainer(
            model,
            config,
            train,
            valid,
            seed=context.seed,
            device=device,
            scratch=context.scratch,
            score=_bleu(valid, references, text) if config.select == "bleu" else None,
        )
        context.progress.say(
            f"{parameter_count(model):,} parameters, {len(train):,} training rows with "
            f"{int(train.target.lengths.sum()):,} target tokens, {trainer.precision} on {device}"
        )
        with context.progress.meter("trains", config.steps, "steps") as meter:
            curve = trainer.run(lambda progress: _show(progress, meter))
        save_model(context.output, config.model, model, text)
        write_json(context.output / "curve.json", curve)
        used = len(train) + len(valid)
        return Result(
            rows_in=used,
            rows=used,
            properties={
                **{key: features.properties[key] for key in ("languages", "task", "vocabulary")},
                "parameters": parameter_count(model),
                "steps": trainer.progress.step,
            },
        )


def _show(progress: Progress, meter: Meter) -> None:
    note = ""
    if progress.curve:
        last = progress.curve[-1]
        note = f"loss {last['train_loss']:.3f}, validation {last['valid_loss']:.3f}"
        if "valid_bleu" in last:
            note += f", BLEU {last['valid_bleu']:.1f}"
    meter.reach(progress.step, note)


def _rows(table: pl.DataFrame, split: str, max_length: int) -> TrainingRows:
    from model.training import TrainingRows
    from stages.features import ragged

    part = table.filter(table["split"] == split)
    if part.is_empty():
        raise ValueError(f"there are no {split} rows; give ingest a split: with {split}")
    rows = TrainingRows({"text": ragged(part["source_ids"])}, ragged(part["target_ids"]))
    longest = int(rows.lengths.max())
    if longest > max_length:
        raise ValueError(
            f"a {split} row has {longest} tokens, the model takes {max_length}: lower the text "
            "stage's filter.max_tokens, or raise model.max_length"
        )
    return rows


def _bleu(
    rows: TrainingRows, references: list[str], text: TextProcessor
) -> Callable[[EncoderDecoder], float]:
    """Corpus BLEU of greedy decoding, as the score stage computes it."""
    from sacrebleu.metrics import BLEU

    from exports.decoding import decode_all, length_limits
    from exports.torch_stepper import TorchStepper
    from stages.languages import bleu_tokenizer

    metric = BLEU(tokenize=bleu_tokenizer(text.settings.target.language))
    source = rows.source["text"]

    def score(model: EncoderDecoder) -> float:
        hypotheses = decode_all(
            TorchStepper(model),
            source.lengths,
            lambda chosen: {"text": source.padded(chosen)},
            length_limits(source.lengths, model.max_length),
            VALIDATION_TOKENS,
        )
        texts = text.decode([hypothesis.tokens for hypothesis in hypotheses])
        return float(metric.corpus_score(texts, [references]).score)

    return score
