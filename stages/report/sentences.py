"""Every scored sentence with a score of its own, for the comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from pipelines.contracts.reports import SENTENCES, Sentence, Sentences
from pipelines.store.files import write_json
from stages.measures.metrics import MetricName
from stages.report.media import media_of
from stages.rows.shards import content_hash, first_rows
from stages.score.comparing import scoring_of
from stages.score.segments import read_segments

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact

MOST_ROWS = 2000
"""Rows kept of each task and split: the first by id, which is a hash, so always the same."""
MEDIA_BYTES = 32 << 20
"""Pictures and sounds are kept up to this total size."""
FITTING: tuple[MetricName, ...] = (
    "accuracy",
    "chrf",
    "exact_match",
    "wer",
    "cer",
    "ter",
    "token_accuracy",
)
"""Metrics that are meaningful for one sentence, the most suitable first. BLEU is not."""


def write_sentences(
    predictions: Sequence[Artifact],
    scores: Sequence[Artifact],
    records: Sequence[Artifact],
    folder: Path,
) -> None:
    """Writes `sentences.json`, and `media/` for rows that have any."""
    rows: list[Sentence] = []
    metrics: dict[str, str] = {}
    for artifact in predictions:
        table = first_rows(artifact, ["task", "split"], MOST_ROWS).sort("task", "split", "id")
        for (task, split), chosen in table.group_by(["task", "split"], maintain_order=True):
            values: dict[str, float] = {}
            for scored in scores:
                name, scored_rows = _scored(scored, str(task), str(split), chosen["id"])
                if name is not None:
                    metrics[f"{task}/{split}"] = name
                    values = scored_rows
            rows += [
                Sentence(**row, score=values.get(row["id"]))
                for row in chosen.select(
                    "id", "task", "split", "text", "reference", "hypothesis"
                ).iter_rows(named=True)
            ]
    media = write_media([row.id for row in rows], records, folder / "media")
    rows = [row.model_copy(update={"media": tuple(media.get(row.id, ()))}) for row in rows]
    write_json(folder / SENTENCES, Sentences(metrics=metrics, rows=tuple(rows)).to_json())


def _scored(
    artifact: Artifact, task: str, split: str, ids: pl.Series
) -> tuple[MetricName | None, dict[str, float]]:
    """The metric that suits single sentences best, and its score of each of some rows; nothing if
    the artifact has no such metric, or no segments of the task and split."""
    if task not in artifact.properties.get("scoring", {}):
        return None, {}
    scoring = scoring_of(artifact, task)
    name = next((name for name in FITTING if name in scoring.metrics), None)
    if name is None:
        return None, {}
    measure = scoring.statistic(name)
    found = False
    values: dict[str, float] = {}
    for segments in read_segments(artifact.folder, {"id", "task", "split", name}):
        rows = segments.filter(task=task, split=split)
        found = found or not rows.is_empty()
        rows = rows.filter(pl.col("id").is_in(ids.implode()))
        if not rows.is_empty():
            totals = measure.unpacked(rows[name].to_numpy())
            values.update(zip(rows["id"], map(measure.score, totals), strict=True))
    return (name, values) if found else (None, {})


def write_media(
    ids: Sequence[str], records: Sequence[Artifact], folder: Path
) -> dict[str, list[str]]:
    """Names of the files written for each row. An id can be any text, a file name cannot."""
    written: dict[str, list[str]] = {}
    left = MEDIA_BYTES
    for id, shown in sorted(media_of(ids, records).items()):
        for preview in shown.values():
            if left < len(preview.data):
                continue
            left -= len(preview.data)
            folder.mkdir(exist_ok=True)
            name = content_hash(id) + preview.ending
            (folder / name).write_bytes(preview.data)
            written.setdefault(id, []).append(name)
    return written
