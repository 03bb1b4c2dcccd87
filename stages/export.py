"""Export: a model in, ONNX graphs out, published only if they compute the same as the model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from model.modalities.known import MEDIA
from model.names import WISH
from pipelines.registry import load, names
from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from exports.decoding.session import Provider, SessionStepper
    from exports.making.parity import Batch
    from model.modalities.sources import SourceRows
    from model.modalities.target import TargetCodec
    from model.wishes import Wishes
    from stages.features.feature_set import FeatureSet, Rows

BATCH = 16
LOGITS_ROWS = 64
"""Validation rows for which every logit is compared."""


class ExportConfig(Config):
    """The precision of the graphs, and how the parity gates measure."""

    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        Field(
            description="precision of weights and of what is multiplied by them; int8 is for the "
            "CPU, fp16 and bf16 are for CUDA"
        ),
    ] = "fp32"
    attention: Annotated[
        bool,
        Field(
            description="decoding steps also output the attention to the source, which "
            "search.coverage in generate needs; this makes them slower"
        ),
    ] = False
    tolerance: Annotated[
        float, Field(gt=0, description="largest allowed difference of a logit, ONNX to PyTorch")
    ] = 1e-3
    parity_rows: Annotated[
        int | None,
        Field(
            ge=1,
            description="test rows (or validation rows, if there are no test rows) that PyTorch "
            "and ONNX must decode to the same tokens; all if not given",
        ),
    ] = None
    calibration_rows: Annotated[
        int, Field(ge=1, description="training rows to measure the ranges of int8 activations on")
    ] = 256
    max_loss: Annotated[
        float,
        Field(
            ge=0,
            description="largest allowed loss of a lower precision against fp32 on all validation "
            "rows: in BLEU, or in percent accuracy for tasks with labels, averaged over tasks",
        ),
    ] = 0.5


class Export(Stage[ExportConfig]):
    """Exports the encoder and one decoding step with its cache, behind parity gates."""

    inputs = {
        "model": Input("model", "trained weights with their preprocessing"),
        "features": Input("features", "rows for the gates, and to calibrate int8", many=True),
    }
    output = "graphs"
    libraries = ("torch", "onnx", "onnxscript", "onnxruntime", "sacrebleu")

    def plugins(self) -> Sequence[str]:
        # The model says which network it is; before the model exists, it can be any.
        networks = [load(target).network for target in names("models").values()]
        return [*networks, *(modality.embedding for modality in MEDIA.values())]

    def run(self, context: Context, inputs: Inputs) -> Result:
        from exports.decoding.torch_stepper import TorchStepper
        from exports.making.graphs import export_graphs
        from exports.making.parity import same_logits, same_tokens, stability
        from model.saved.folder import load_model
        from stages.features.feature_set import FeatureSet

        config = self.config
        (trained,) = inputs["model"]
        features = FeatureSet.of(inputs["features"])
        model, _, processor = load_model(trained.folder)
        exact = context.output if config.precision == "fp32" else context.scratch / "fp32"
        exact.mkdir(exist_ok=True)
        model.attentive = config.attention
        export_graphs(model, exact)
        processor.copy(context.output)
        context.progress.say("comparing ONNX with PyTorch")
        rows = features.paths.load([path.name for path in features.shards()], "valid")
        if not len(rows.table):
            raise ValueError("there are no validation rows for the parity gate")
        stepper, loading = _load(exact, ("cpu",), context.threads)
        exactly, longest = TorchStepper(model), model.max_length
        target = features.processor.target
        batches = list(_wishing(_batches(rows, LOGITS_ROWS, target, longest), stepper.wishes))
        difference = same_logits(exactly, stepper, batches, config.tolerance)
        held_out = _wishing(_held_out(features, config.parity_rows, longest), stepper.wishes)
        parity = same_tokens(exactly, stepper, held_out, config.tolerance)
        context.progress.say(
            f"same tokens in {parity.tokens_agree} of {parity.rows} rows, largest difference of a "
            f"logit {difference:.1e}"
        )
        properties = {
            "sizes": trained.properties["sizes"],
            "precision": config.precision,
            "attention": config.attention,
            "wishes": dict(stepper.wishes.values),
            "parity": {"rows": parity.rows, "tokens_agree": parity.tokens_agree},
        }
        if config.precision != "fp32":
            lost, stepper, loading = self.lower(context, features, rows, stepper, exact)
            properties |= {"bytes_fp32": _bytes(exact), **lost}
        properties["bytes"] = _bytes(context.output)
        chosen = _spread(rows.table, BATCH)
        stable = stability(
            stepper,
            rows.source.collate(chosen),
            [rows.source.collate(chosen[n : n + 1]) for n in range(len(chosen))],
            _limits(rows, target, model.max_length)[chosen],
        )
        measured = {
            "loading_graphs": loading,
            "onnx_pytorch_difference": difference,
            "batch_difference": stable.batch,
            "rerun_difference": stable.rerun,
        }
        return Result(rows_in=1, rows=1, properties=properties, measured=measured)

    def lower(
        self,
        context: Context,
        features: FeatureSet,
        rows: Rows,
        exact: SessionStepper,
        folder: Path,
    ) -> tuple[dict[str, Any], SessionStepper, float]:
        """Writes the graphs of lower precision. Returns the scores of both precisions with the
        loss and the provider that it was measured on; the graphs; and the seconds to load them.

        Raises:
            ValueError: there are no rows to calibrate on.
            exports.making.parity.ParityError: the loss is larger than allowed.
            exports.decoding.session.ProviderError: bf16 cannot be measured without CUDA.
        """
        from exports.making.half_precision import halve_graphs
        from exports.making.parity import precision_loss
        from stages.validation import Validation

        config = self.config
        providers: tuple[Provider, ...] = ("cpu",)
        if config.precision == "int8":
            self.quantize(context, features, exact, folder)
        elif config.precision != "fp32":
            halve_graphs(folder, context.output, config.precision)
            # On the CPU, ONNX Runtime computes fp16 slowly, and does not have bf16.
            providers = ("cuda", "cpu") if config.precision == "fp16" else ("cuda",)
        low, loading = _load(context.output, providers, context.threads)
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        for name, source in _sources(rows.source, exact.wishes):
            asked = replace(rows, source=source)
            validation = Validation(asked, features.tasks, features.processor.target)
            for scores, stepper in ((before, exact), (after, low)):
                found = validation.scores(stepper, exact.max_length)
                scores |= {name + metric: value for metric, value in found.items()}
        loss = precision_loss(before, after, config.max_loss)
        context.progress.say(
            f"{config.precision} loses {loss:.2f} on {len(rows.table):,} validation rows"
        )
        rounded = {
            name: {score: round(value, 4) for score, value in scores.items()}
            for name, scores in (("fp32", before), (config.precision, after))
        }
        measured = {"validation": rounded, "loss": round(loss, 4), "validated_on": low.provider}
        return measured, low, loading

    def quantize(
        self, context: Context, features: FeatureSet, exact: SessionStepper, folder: Path
    ) -> None:
        """Writes the 8-bit graphs, with activation ranges measured on training rows."""
        from exports.decoding.greedy import greedy
        from exports.making.quantization import quantize_graphs

        config = self.config
        known = features.paths.load([path.name for path in features.shards()], "train")
        if not len(known.table):
            raise ValueError("there are no training rows to calibrate int8 on")
        target = features.processor.target
        batches = _batches(known, config.calibration_rows, target, exact.max_length)
        # Activations differ with wishes, and how much, with their strength.
        calibrating = list(_wishing(batches, exact.wishes, (1.0, 2.0, 4.0)))

        def calibrate(stepper: SessionStepper) -> None:
            for source, limits in calibrating:
                greedy(stepper, source, limits)

        context.progress.say(f"calibrating int8 on {config.calibration_rows} training rows")
        quantize_graphs(folder, context.output, calibrate)


def _load(
    folder: Path, providers: tuple[Provider, ...], threads: int
) -> tuple[SessionStepper, float]:
    """The graphs of a folder, and the seconds to load them."""
    from exports.decoding.device import open_stepper

    started = time.perf_counter()
    stepper = open_stepper(folder, providers, threads)
    return stepper, time.perf_counter() - started


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.onnx"))


def _held_out(features: FeatureSet, count: int | None, max_length: int) -> Iterator[Batch]:
    """All test rows, or `count` of them, shard by shard; validation rows if there are none."""
    import numpy as np
    import polars as pl

    from model.batching import sorted_batches
    from stages.validation import BATCH_TOKENS

    columns = ["id", "split", "task", "modalities"]
    tables = [
        pl.read_parquet(path, columns=columns).with_columns(shard=pl.lit(path.name))
        for path in features.shards()
    ]
    table = pl.concat(tables, how="diagonal")
    split = "test" if (table["split"] == "test").any() else "valid"
    chosen = table.filter(split=split)
    if count is not None:
        chosen = chosen[_spread(chosen, count)]
    for (name,), part in chosen.group_by("shard", maintain_order=True):
        rows = features.paths.load([str(name)], split)
        numbers = np.flatnonzero(rows.table["id"].is_in(part["id"].implode()).to_numpy())
        limits = _limits(rows, features.processor.target, max_length)
        lengths = rows.source.lengths
        for group in sorted_batches(lengths[numbers], BATCH_TOKENS):
            yield rows.source.collate(numbers[group]), limits[numbers[group]]


def _sources(source: SourceRows, wishes: Wishes) -> Iterator[tuple[str, SourceRows]]:
    """Sources to validate a lower precision on: as they are, and with wishes, by the beginning of
    their scores' names."""
    import numpy as np

    yield "", source
    for wish, numbers in wishes.groups:
        values = np.array(numbers)[np.arange(len(source)) % len(numbers)]
        strengths = np.eye(wishes.count, dtype=np.float32)[values]
        yield f"{wish}.", replace(source, wish=strengths)


def _wishing(
    batches: Iterable[Batch], wishes: Wishes, strengths: Sequence[float] = (1.0,)
) -> Iterator[Batch]:
    """Batches whose rows wish for one value after the other, and some for none, with one strength
    after the other."""
    import numpy as np

    for source, limits in batches:
        if wishes:
            turns, numbers = np.divmod(np.arange(len(limits)), wishes.count + 1)
            wished = np.eye(wishes.count + 1, dtype=np.float32)[numbers, :-1]
            strength = np.array(strengths, dtype=np.float32)[turns % len(strengths)]
            source = {**source, WISH: wished * strength[:, None]}
        yield source, limits


def _batches(rows: Rows, count: int, target: TargetCodec, max_length: int) -> list[Batch]:
    """`count` rows, each with the maximum number of tokens to decode, in batches of several sizes
    and kinds, and one row alone: shapes must be dynamic in both graphs."""
    from model.batching import sorted_batches

    chosen = _spread(rows.table, count)
    source, lengths = rows.source, rows.source.lengths
    limits = _limits(rows, target, max_length)
    size = int(lengths[chosen].sum(axis=1).max()) * BATCH
    sorted_groups = [chosen[group] for group in sorted_batches(lengths[chosen], size)]
    groups = [chosen[:1], chosen[:BATCH], *sorted_groups]
    return [(source.collate(group), limits[group]) for group in groups]


def _limits(rows: Rows, target: TargetCodec, max_length: int) -> np.ndarray:
    """The maximum number of tokens to decode for each row."""
    return target.limits(rows.source.lengths.sum(axis=1), max_length)


def _spread(table: pl.DataFrame, count: int) -> np.ndarray:
    """Row numbers of `count` rows, taken in turn from every task and set of modalities."""
    import polars as pl

    turn = pl.col("id").cum_count().over("task", "modalities")
    ranked = table.with_row_index("row").sort("id").with_columns(turn=turn)
    chosen = ranked.sort("turn", "task", "modalities").head(count)
    return chosen["row"].to_numpy().astype("int64")
