"""Every scored sentence with a score of its own, for the comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from pipelines.contracts.reports import SENTENCES, Sentence, Sentences
from pipelines.store.files import write_json
from stages.report.media import media_of
from stages.rows.shards import content_hash, read_rows
from stages.score.comparing import scoring_of
from stages.score.metrics import MetricName
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
    segments = [
        (artifact, read_segments(artifact.folder))
        for artifact in scores
        if "scoring" in artifact.properties
    ]
    for table in map(read_rows, predictions):
        for (task, split), part in table.group_by(["task", "split"], maintain_order=True):
            chosen = part.sort("id").head(MOST_ROWS)
            values: dict[str, float] = {}
            for artifact, scored in segments:
                segment_rows = scored.filter(task=task, split=split)
                names = [
                    name
                    for name in FITTING
                    if name in artifact.properties["scoring"][task]["metrics"]
                ]
                if segment_rows.is_empty() or not names:
                    continue
                metrics[f"{task}/{split}"] = names[0]
                segment_rows = segment_rows.filter(pl.col("id").is_in(chosen["id"].implode()))
                measure = scoring_of(artifact, str(task)).statistic(names[0])
                totals = measure.unpacked(segment_rows[names[0]].to_numpy())
                values = dict(zip(segment_rows["id"], map(measure.score, totals), strict=True))
            rows += [
                Sentence(**row, score=values.get(row["id"]))
                for row in chosen.select(
                    "id", "task", "split", "text", "reference", "hypothesis"
                ).iter_rows(named=True)
            ]
    media = write_media([row.id for row in rows], records, folder / "media")
    rows = [row.model_copy(update={"media": tuple(media.get(row.id, ()))}) for row in rows]
    write_json(folder / SENTENCES, Sentences(metrics=metrics, rows=tuple(rows)).to_json())


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
