"""What `report` gathers: texts, examples, rejects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from pipelines.contracts.base import Contract, read_list
from pipelines.contracts.predictions import PROMPTS, Answer
from pipelines.contracts.reports import Content, Example, Lineage, Prompt
from pipelines.contracts.scores import (
    CLASSIFICATION,
    DIVERSITY,
    LATENT,
    SYSTEMS,
    TRADEOFF,
    WISHES,
    Classification,
    Comparison,
    LatentExchange,
    Tradeoff,
    Variety,
    WishKnown,
)
from pipelines.stage import Context, Inputs, Result
from pipelines.store.files import write_json
from stages.report.media import with_previews
from stages.report.options import CONTENT, ReportConfig
from stages.report.sentences import write_sentences
from stages.rows.rejects import read_rejects
from stages.rows.shards import first_rows, row_shards, table_groups

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact

C = TypeVar("C", bound=Contract)


def gather(config: ReportConfig, context: Context, inputs: Inputs) -> Result:
    """Writes all data that the pages are made from."""
    of_kind = {
        kind: {name: made for name, made in context.lineage.items() if made.kind == kind}
        for kind in ("records", "model", "predictions")
    }
    examples: list[Example] = []
    prompts: list[Prompt] = []
    for name, artifact in of_kind["predictions"].items():
        examples += _write_texts(artifact, context.output / "text", config.examples)
        answers = read_list(artifact.folder / PROMPTS, Answer)
        prompts += [Prompt(stage=name, **answer.to_json()) for answer in answers]
    predictions = list(of_kind["predictions"].values())
    records = list(of_kind["records"].values())
    models, scored = of_kind["model"].values(), inputs["scores"]
    curves = {name: artifact.curve() for name, artifact in of_kind["model"].items()}
    content = Content(
        title=config.title,
        scores=tuple(score for scored in inputs["scores"] for score in scored.scores()),
        curves={name: curve for name, curve in curves.items() if curve},
        classification=tuple(gathered(scored, CLASSIFICATION, Classification)),
        diversity=tuple(gathered(scored, DIVERSITY, Variety)),
        latent=tuple(gathered(models, LATENT, LatentExchange)),
        wishes=tuple(gathered(models, WISHES, WishKnown)),
        tradeoff=tuple(gathered(scored, TRADEOFF, Tradeoff)),
        systems=tuple(gathered(scored, SYSTEMS, Comparison)),
        examples=tuple(with_previews(examples, records)),
        prompts=tuple(prompts),
        rejected=_write_rejected(context.lineage, context.output / "rejected.jsonl"),
        lineage={
            name: Lineage(
                kind=artifact.kind,
                digest=artifact.digest,
                fingerprint=artifact.fingerprint,
                rows=artifact.rows,
                properties=artifact.properties,
                versions=artifact.manifest.versions,
            )
            for name, artifact in context.lineage.items()
        },
    )
    write_json(context.output / CONTENT, content.to_json())
    write_sentences(predictions, inputs["scores"], records, context.output)
    return Result(rows_in=len(content.scores), rows=len(content.scores))


def _write_texts(artifact: Artifact, folder: Path, count: int) -> list[Example]:
    """Writes sources, hypotheses and references as lines of text; returns some rows to show."""
    folder.mkdir(exist_ok=True)
    # A row without text is shown by where it comes from, so that the lines stay aligned.
    shown = pl.coalesce("text", pl.concat_str(pl.lit("<"), "position", pl.lit(">")))
    for rows in (rows for path in row_shards(artifact) for rows in table_groups(path)):
        table = rows if "text" in rows.columns else rows.with_columns(text=pl.lit(None, pl.String))
        table = table.with_columns(shown=shown)
        for (task, split), part in table.group_by(["task", "split"], maintain_order=True):
            for column, suffix in (("shown", "src"), ("hypothesis", "hyp"), ("reference", "ref")):
                _write_lines(part[column], folder / f"{task}.{split}.{suffix}.txt")
    kinds = ["task", "split", "modalities"]
    chosen = first_rows(artifact, kinds, count).sort(*kinds, "id")
    return [Example.model_validate(row) for row in chosen.to_dicts()]


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
                for part in read_rejects(artifact):
                    for row in part.iter_rows(named=True):
                        file.write(json.dumps({**row, "stage": name}, ensure_ascii=False) + "\n")
    return counts


def gathered(artifacts: Iterable[Artifact], name: str, kind: type[C]) -> list[C]:
    """The entries in a file of every artifact that has it, one after the other."""
    entries: list[C] = []
    for artifact in artifacts:
        path = artifact.folder / name
        if path.exists():
            entries += read_list(path, kind)
    return entries
