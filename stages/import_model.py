"""Import: a checkpoint of Hugging Face's Marian in, a model out; in the place of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipelines.stage import Config, Context, Inputs, Result, Stage

if TYPE_CHECKING:
    from pipelines.store.sources import Outside


class ImportConfig(Config):
    """Which checkpoint, and what it does."""

    folder: Annotated[
        str,
        Field(
            description="folder of a Marian (OPUS-MT) model and tokenizer, as transformers' "
            "save_pretrained writes it: config.json, model.safetensors, vocab.json, source.spm, "
            "target.spm"
        ),
    ]
    task: Annotated[str, Field(description="the task that it does, as the records name it")] = (
        "translate"
    )
    prefix: Annotated[
        str | None,
        Field(description="piece before every source: >>fra<<, for models of several languages"),
    ] = None


class Import(Stage[ImportConfig]):
    """Takes over a trained checkpoint with its vocabulary: exported, decoded and scored as ours."""

    inputs = {}
    output = "model"
    libraries = ("torch", "safetensors", "sentencepiece")

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        from pipelines.store.sources import find_files

        for file in find_files(f"{self.config.folder}/*", base):
            if Path(file.url).name in READ:
                yield file.shown, file

    def plugins(self) -> Sequence[str]:
        return ("model.networks.transformer:Transformer",)

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.modalities.processing import Processor
        from model.saved.marian import import_marian

        config = self.config
        folder = context.base / config.folder
        parameters = import_marian(folder, context.output, config.task, config.prefix)
        context.progress.say(f"{parameters:,} parameters of {config.folder}")
        return Result(
            rows_in=1,
            rows=1,
            properties={
                "sizes": Processor.load(context.output).sizes,
                "parameters": parameters,
            },
        )


READ = {
    "config.json",
    "model.safetensors",
    "vocab.json",
    "target_vocab.json",
    "source.spm",
    "target.spm",
}
"""What the result depends on, of all that such a folder may hold."""
