"""Report: everything upstream in, pages with numbers and examples out.

The artifact holds only data. The pages are made from it at the end of every run, cached or not,
because they also show how that run went.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from model.modalities.known import MEDIA
from pipelines.contracts.base import read
from pipelines.contracts.reports import Content
from pipelines.stage import Context, Input, Inputs, Result, RunView, Stage
from stages.report.options import CONTENT, ReportConfig

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact


class Report(Stage[ReportConfig]):
    """Gathers scores, curves, examples, rejects and lineage; writes JSON, Markdown and HTML."""

    inputs = {"scores": Input("scores", "one or several sets of scores", many=True)}
    output = "report"
    libraries = ("polars", "opencv-python", "soundfile")
    whole_lineage = True

    def plugins(self) -> Sequence[str]:
        return [modality.preview for modality in MEDIA.values()]

    def present(self, artifact: Artifact, view: RunView) -> None:
        from stages.report.pages import write_pages

        content = read(artifact.folder / CONTENT, Content)
        report = view.folder / "report"
        shutil.copytree(artifact.folder / "text", view.folder / "text", dirs_exist_ok=True)
        report.mkdir(exist_ok=True)
        shutil.copy(artifact.folder / "rejected.jsonl", report / "rejected.jsonl")
        write_pages(content, view.record, report)

    def run(self, context: Context, inputs: Inputs) -> Result:
        from stages.report.work import gather

        return gather(self.config, context, inputs)
