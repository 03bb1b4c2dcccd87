"""Import: a Hugging Face Marian checkpoint in, a model out; it replaces training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipelines.contracts.tasks import TaskName
from pipelines.stage import Config, Context, Inputs, Result, Stage

if TYPE_CHECKING:
    from pipelines.store.sources import Outside, SourceFile


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
    task: Annotated[TaskName, Field(description="its task, as the records name it")] = "translate"
    prefix: Annotated[
        str | None,
        Field(description="piece before every source, as >>fra<<, for models of several languages"),
    ] = None


class Import(Stage[ImportConfig]):
    """Imports a trained checkpoint with its vocabulary, to export, decode and score like ours."""

    inputs = {}
    output = "model"
    libraries = ("torch", "safetensors", "sentencepiece")

    def tasks(self) -> Collection[str]:
        return (self.config.task,)

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        return ((file.shown, file) for file in self._files(base))

    def _files(self, base: Path) -> Iterator[SourceFile]:
        from pipelines.store.sources import find_files

        files = find_files(f"{self.config.folder}/*", base)
        return (file for file in files if Path(file.url).name in READ)

    def plugins(self) -> Sequence[str]:
        return ("model.networks.transformer:Transformer",)

    def run(self, context: Context, inputs: Inputs) -> Result:
        from model.modalities.processing import Processor
        from model.saved.marian import CheckpointError, import_marian
        from pipelines.store.sources import copy_planned

        config = self.config
        # A copy is read: of it, it is known that it is what the plan saw.
        folder = context.scratch / "checkpoint"
        folder.mkdir(exist_ok=True)
        for file in self._files(context.base):
            copy_planned(file, folder / Path(file.url).name, context.outside)
        try:
            parameters = import_marian(folder, context.output, config.task, config.prefix)
        except CheckpointError as error:
            raise ValueError(str(error).replace(str(folder), config.folder)) from error
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
"""The files of such a folder that the result depends on."""
