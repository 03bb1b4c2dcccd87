"""Generate: features and graphs in, predictions out; in bulk on ONNX Runtime, in Beam."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.modalities.known import MEDIA
from pipelines.registry import did_you_mean, resolve
from pipelines.stage import Context, Input, Inputs, Result, Stage
from stages.generate.options import GenerateConfig, OwnSource

if TYPE_CHECKING:
    from pipelines.store.sources import Outside


class Generate(Stage[GenerateConfig]):
    """Decodes with the exported graphs, or takes the most probable label for tasks with labels."""

    inputs = {
        "graphs": Input("graphs", "the exported model"),
        "features": Input("features", "features of the rows, in all modalities", many=True),
    }
    output = "predictions"
    libraries = ("apache-beam", "onnxruntime", "numpy", "sentencepiece")
    seeded = True

    def plugins(self) -> Sequence[str]:
        select = self.config.select
        utilities = [] if select is None else [resolve("utilities", select.utility)]
        return [*(modality.preparation for modality in MEDIA.values()), *utilities]

    def check_tasks(self, tasks: Sequence[str]) -> None:
        for task in self.config.select.tasks if self.config.select else ():
            if task not in tasks:
                near = did_you_mean(task, tasks)
                raise ValueError(f"select.tasks: there is no task {task!r}{near}")
        for prompt in self.config.prompts:
            if isinstance(prompt, OwnSource) and prompt.task is not None:
                if prompt.task not in tasks:
                    near = did_you_mean(prompt.task, tasks)
                    raise ValueError(f"prompts: there is no task {prompt.task!r}{near}")
            elif len(tasks) > 1:
                raise ValueError(
                    f"prompts: say which task, as in {{task: {tasks[0]}, text: …}}; there are "
                    f"{', '.join(tasks)}"
                )

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        from pipelines.store.sources import find_files

        paths = [self.config.search.words]
        for prompt in self.config.prompts:
            if isinstance(prompt, OwnSource):
                paths += prompt.files.values()
        for path in filter(None, paths):
            for file in find_files(path, base):
                yield file.shown, file

    def run(self, context: Context, inputs: Inputs) -> Result:
        from stages.generate.work import generate

        return generate(self.config, context, inputs)
