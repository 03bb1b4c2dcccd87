"""Export: a model in, ONNX graphs out, published only if they compute what the model does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

BATCH = 16


class ExportConfig(Config):
    """How the parity gate measures."""

    tolerance: Annotated[
        float, Field(gt=0, description="largest difference of a logit between ONNX and PyTorch")
    ] = 1e-3
    parity_rows: Annotated[
        int, Field(ge=1, description="validation rows that the parity gate decodes with both")
    ] = 64


class Export(Stage):
    """Exports the encoder and one decoding step with its cache, behind the parity gate."""

    Config: ClassVar[Any] = ExportConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input("model", "trained weights with their preprocessing"),
        "features": Input("features", "held-out rows for the parity gate", many=True),
    }
    output: ClassVar[str] = "graphs"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxruntime")

    def run(self, context: Context, inputs: Inputs) -> Result:
        from exports.decoding import length_limits
        from exports.graphs import export_graphs
        from exports.parity import compare
        from exports.session import SessionStepper
        from exports.torch_stepper import TorchStepper
        from model.artifact import load_model
        from model.batching import sorted_batches
        from stages.features import FeatureSet

        config: ExportConfig = self.config
        (trained,) = inputs["model"]
        features = FeatureSet.of(inputs["features"])
        model, _, processor = load_model(trained.folder)
        export_graphs(model, context.output)
        processor.copy(context.output)
        context.progress.say("compares ONNX with PyTorch")
        rows = features.paths.load([str(path) for path in features.shards()], "valid")
        if not len(rows.table):
            raise ValueError("there are no validation rows for the parity gate")
        held_out = _spread(rows.table, config.parity_rows)
        source, lengths = rows.source, rows.source.lengths
        limits = length_limits(lengths.sum(axis=1), model.max_length)
        # Batches of several sizes and kinds, and one row alone: shapes must be free in both graphs.
        size = int(lengths[held_out].sum(axis=1).max()) * BATCH
        sorted_groups = [held_out[group] for group in sorted_batches(lengths[held_out], size)]
        groups = [held_out[:1], held_out[:BATCH], *sorted_groups]
        batches = [(source.collate(group), limits[group]) for group in groups]
        stepper = SessionStepper(context.output, ("cpu",), context.threads)
        parity = compare(TorchStepper(model), stepper, batches, config.tolerance)
        context.progress.say(
            f"same tokens in {parity.rows} rows, largest difference {parity.largest_difference:.1e}"
        )
        size = sum(path.stat().st_size for path in context.output.glob("*.onnx"))
        return Result(
            rows_in=1,
            rows=1,
            properties={
                "sizes": trained.properties["sizes"],
                "parity": {"rows": parity.rows, "tokens_agree": parity.tokens_agree},
                "bytes": size,
            },
        )


def _spread(table: pl.DataFrame, count: int) -> np.ndarray:
    """Numbers of `count` rows, of every task and set of modalities in turn."""
    import polars as pl

    turn = pl.col("id").cum_count().over("task", "modalities")
    ranked = table.with_row_index("row").sort("id").with_columns(turn=turn)
    chosen = ranked.sort("turn", "task", "modalities").head(count)
    return chosen["row"].to_numpy().astype("int64")
