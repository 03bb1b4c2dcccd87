"""Export: a model in, ONNX graphs out, published only if they compute what the model does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

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
        "model": Input("model", "trained weights with their text processing"),
        "features": Input("features", "held-out rows for the parity gate"),
    }
    output: ClassVar[str] = "graphs"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxruntime")

    def run(self, context: Context, inputs: Inputs) -> Result:
        import numpy as np

        from exports.decoding import length_limits
        from exports.graphs import export_graphs
        from exports.parity import compare
        from exports.session import SessionStepper
        from exports.torch_stepper import TorchStepper
        from model.artifact import load_model
        from model.batching import sorted_batches
        from stages.features import ragged
        from stages.rows import read_rows

        config: ExportConfig = self.config
        (trained,), (features,) = inputs["model"], inputs["features"]
        model, text = load_model(trained.folder)
        export_graphs(model, context.output)
        shutil.copytree(text.folder, context.output / "text")
        context.progress.say("compares ONNX with PyTorch")
        table = read_rows(features, ["split", "id", "source_ids"])
        held_out = table.filter(table["split"] == "valid").sort("id").head(config.parity_rows)
        if held_out.is_empty():
            raise ValueError("there are no validation rows for the parity gate")
        source = ragged(held_out["source_ids"])
        limits = length_limits(source.lengths, model.max_length)
        longest = int(source.lengths.max())
        # Batches of several sizes, and one row alone: shapes must be free in both graphs.
        groups = [np.array([0]), *sorted_batches(source.lengths, longest * BATCH)]
        batches = [({"text": source.padded(rows)}, limits[rows]) for rows in groups]
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
                **{key: trained.properties[key] for key in ("languages", "task", "vocabulary")},
                "parity": {"rows": parity.rows, "tokens_agree": parity.tokens_agree},
                "bytes": size,
            },
        )
