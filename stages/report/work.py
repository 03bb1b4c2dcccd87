"""What `report` gathers: texts, examples, rejects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipelines.stage import Context, Inputs, Result
from pipelines.store.files import write_json
from stages.report.media import with_media
from stages.report.options import ReportConfig
from stages.report.sentences import write_sentences
from stages.rows.rejects import read_rejected
from stages.rows.shards import read_rows

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact

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


def gather(config: ReportConfig, context: Context, inputs: Inputs) -> Result:
    """Writes all that the pages are drawn from."""
    scores = gathered(inputs, "scores.json")
    of_kind = _by_kind(context.lineage)
    examples, prompts = [], []
    for name, artifact in of_kind("predictions"):
        examples += _write_texts(artifact, context.output / "text", config.examples)
        shown = json.loads((artifact.folder / "prompts.json").read_text(encoding="utf-8"))
        prompts += [{"stage": name, **prompt} for prompt in shown]
    content = {
        "title": config.title,
        "scores": scores,
        "curves": {
            name: json.loads((artifact.folder / "curve.json").read_text(encoding="utf-8"))
            for name, artifact in of_kind("model")
            if artifact.files("curve.json")  # An imported model was not trained here.
        },
        "classification": gathered(inputs, "classification.json"),
        "diversity": gathered(inputs, "diversity.json"),
        "systems": gathered(inputs, "systems.json"),
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


def _by_kind(lineage: Mapping[str, Artifact]) -> Any:
    def of_kind(kind: str) -> Iterator[tuple[str, Artifact]]:
        return ((name, artifact) for name, artifact in lineage.items() if artifact.kind == kind)

    return of_kind


def _write_texts(artifact: Artifact, folder: Path, count: int) -> list[dict[str, Any]]:
    """Sources, hypotheses and references as lines of text, in one order; and some to show."""
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
    counts: dict[str, dict[str, int]] = {}
    with path.open("w", encoding="utf-8") as file:
        for name, artifact in lineage.items():
            if artifact.rejected:
                counts[name] = artifact.rejected
                for row in read_rejected(artifact).iter_rows(named=True):
                    file.write(json.dumps({**row, "stage": name}, ensure_ascii=False) + "\n")
    return counts


def gathered(inputs: Inputs, name: str) -> list[Any]:
    """The lists in a file of every set of scores, one after the other."""
    found: list[Any] = []
    for artifact in inputs["scores"]:
        path = artifact.folder / name
        if path.exists():
            found += json.loads(path.read_text(encoding="utf-8"))
    return found
