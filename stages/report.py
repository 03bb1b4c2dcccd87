"""Report: everything upstream in, the numbers and examples that people open out.

The artifact holds data alone. The pages are drawn from it at the end of every run, cached or not,
because they also tell how that run went.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, RunView, Stage

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store import Artifact


EXAMPLE_COLUMNS = [
    "id",
    "task",
    "split",
    "modalities",
    "text",
    "reference",
    "hypothesis",
    "labels",
    "probabilities",
]


class ReportConfig(Config):
    """What the report shows."""

    title: Annotated[str, Field(description="heading; the pipeline's name where not given")] = ""
    examples: Annotated[
        int, Field(ge=0, description="rows shown for each task, split and modality")
    ] = 12


class Report(Stage):
    """Gathers scores, curves, examples, rejects and lineage; writes JSON, Markdown and HTML."""

    Config: ClassVar[Any] = ReportConfig
    inputs: ClassVar[Mapping[str, Input]] = {
        "scores": Input("scores", "one or several sets of scores", many=True)
    }
    output: ClassVar[str] = "report"
    libraries: ClassVar[tuple[str, ...]] = ("polars", "opencv-python", "soundfile")
    whole_lineage: ClassVar[bool] = True

    def run(self, context: Context, inputs: Inputs) -> Result:
        from pipelines.files import write_json
        from stages.report_media import with_media
        from stages.report_sentences import write_sentences

        scores = self.gathered(inputs, "scores.json")
        of_kind = _by_kind(context.lineage)
        examples, prompts = [], []
        for name, artifact in of_kind("predictions"):
            examples += _write_texts(artifact, context.output / "text", self.config.examples)
            shown = json.loads((artifact.folder / "prompts.json").read_text(encoding="utf-8"))
            prompts += [{"stage": name, **prompt} for prompt in shown]
        content = {
            "title": self.config.title,
            "scores": scores,
            "curves": {
                name: json.loads((artifact.folder / "curve.json").read_text(encoding="utf-8"))
                for name, artifact in of_kind("model")
                if artifact.files("curve.json")  # An imported model was not trained here.
            },
            "classification": self.gathered(inputs, "classification.json"),
            "diversity": self.gathered(inputs, "diversity.json"),
            "systems": self.gathered(inputs, "systems.json"),
            "examples": with_media(examples, [found for _, found in of_kind("records")]),
            "prompts": prompts,
            "rejected": _write_rejected(context.lineage, context.output / "rejected.jsonl"),
            "lineage": {
                name: {
                    "kind": artifact.kind,
                    "digest": artifact.digest,
                    "fingerprint": artifact.fingerprint,
                    "rows": artifact.rows,
                    "properties": artifact.properties,
                    "versions": artifact.manifest["versions"],
                }
                for name, artifact in context.lineage.items()
            },
        }
        write_json(context.output / "content.json", content)
        predictions = [artifact for _, artifact in of_kind("predictions")]
        records = [artifact for _, artifact in of_kind("records")]
        write_sentences(predictions, inputs["scores"], records, context.output)
        return Result(rows_in=len(scores), rows=len(scores))

    def gathered(self, inputs: Inputs, name: str) -> list[Any]:
        """The lists in a file of every set of scores, one after the other."""
        found: list[Any] = []
        for artifact in inputs["scores"]:
            path = artifact.folder / name
            if path.exists():
                found += json.loads(path.read_text(encoding="utf-8"))
        return found

    def present(self, artifact: Artifact, view: RunView) -> None:
        from stages.report_pages import write_pages

        content = json.loads((artifact.folder / "content.json").read_text(encoding="utf-8"))
        report = view.folder / "report"
        shutil.copytree(artifact.folder / "text", view.folder / "text", dirs_exist_ok=True)
        report.mkdir(exist_ok=True)
        shutil.copy(artifact.folder / "rejected.jsonl", report / "rejected.jsonl")
        write_pages(content, view.record, report)


def _by_kind(lineage: Mapping[str, Artifact]) -> Any:
    def of_kind(kind: str) -> Iterator[tuple[str, Artifact]]:
        return ((name, artifact) for name, artifact in lineage.items() if artifact.kind == kind)

    return of_kind


def _write_texts(artifact: Artifact, folder: Path, count: int) -> list[dict[str, Any]]:
    """Sources, hypotheses and references as lines of text, in one order; and some to show."""
    import polars as pl

    from stages.rows import read_rows

    folder.mkdir(exist_ok=True)
    table = read_rows(artifact)
    # A row without text is told by where it comes from, so that the lines stay in step.
    shown = pl.coalesce("text", pl.concat_str(pl.lit("<"), "position", pl.lit(">")))
    table = table.with_columns(shown=shown)
    examples: list[dict[str, Any]] = []
    for (task, split), part in table.group_by(["task", "split"], maintain_order=True):
        for column, suffix in (("shown", "src"), ("hypothesis", "hyp"), ("reference", "ref")):
            _write_lines(part[column], folder / f"{task}.{split}.{suffix}.txt")
        # Ids are hashes, so the first rows are a fair sample.
        for _, kind in part.sort("id").group_by(["modalities"], maintain_order=True):
            examples += kind.head(count).select(EXAMPLE_COLUMNS).to_dicts()
    return examples


def _write_lines(texts: pl.Series, path: Path) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(" ".join(text.split()) + "\n" for text in texts)


def _write_rejected(lineage: Mapping[str, Artifact], path: Path) -> dict[str, dict[str, int]]:
    """Every rejected row of every stage as JSON lines; the counts by stage and reason."""
    from stages.rows import read_rejected

    counts: dict[str, dict[str, int]] = {}
    with path.open("w", encoding="utf-8") as file:
        for name, artifact in lineage.items():
            if artifact.rejected:
                counts[name] = artifact.rejected
                for row in read_rejected(artifact).iter_rows(named=True):
                    file.write(json.dumps({**row, "stage": name}, ensure_ascii=False) + "\n")
    return counts
