"""Scores and comparisons of many segments: bundles of them, read some at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse import issparse

from pipelines.contracts.scores import Comparison, Score
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.rows.shards import content_hash, write_table
from stages.score import bundles, comparing
from stages.score.bundles import Bundles, Place, by_place, in_passes
from stages.score.options import ScoreConfig
from stages.score.stage import Score as ScoreStage
from stages.score.statistics import statistic

LABELS = ("cat", "dog", "owl")
WORDS = ["red", "blue", "the", "a", "house", "river", "walks", "sings"]
ROWS, SHARDS = 600, 3


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 20, 21, 50])
@pytest.mark.parametrize("step", [1, 4, 100])
def test_bundles_are_sums_of_consecutive_segments(
    rows: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "MOST_BUNDLES", 7)
    chance = np.random.default_rng(rows)
    chosen = chance.choice(LABELS, (2, rows)).tolist()
    table = {"reference": chosen[0], "hypothesis": chosen[1]}
    measures = {name: statistic(name, "13a", LABELS) for name in ("accuracy", "macro_f1")}
    whole = {name: measure.segments(table) for name, measure in measures.items()}
    packed = pl.DataFrame(
        {name: measures[name].packed(each).astype(float) for name, each in whole.items()}
    )
    collected = Bundles(measures, rows)
    for start in range(0, rows, step):
        collected.add(packed[start : start + step])
    size = -(-rows // 7)
    for name, found in collected.statistics().items():
        assert issparse(found) == (name == "macro_f1")
        dense = found.toarray() if issparse(found) else found
        expected = [whole[name][start : start + size].sum(axis=0) for start in range(0, rows, size)]
        assert np.array_equal(dense, expected)
        assert len(dense) <= 7


def test_a_segment_without_a_value_is_in_no_slice() -> None:
    table = pl.DataFrame(
        {"task": ["t"] * 4, "split": ["test"] * 4, "where": ["x", None, "None", "x"]}
    )
    found = {place: len(part) for place, part in by_place(table, [(), ("where",), ("other",)])}
    assert found == {
        Place("t", "test", ()): 4,
        Place("t", "test", (("where", "x"),)): 2,
        Place("t", "test", (("where", "None"),)): 1,
    }


def test_passes_hold_a_limited_number_of_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MOST_BUNDLES", 10)
    monkeypatch.setattr(bundles, "TOGETHER", 20)
    passes = list(in_passes([5, 10, 5, 1, 1000, 9, 2], lambda n: n))
    assert passes == [[5, 10, 5], [1, 1000, 9], [2]]


Scored = Callable[..., Artifact]


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    """Scores a system that leaves out a share of the words of random references."""

    def make(
        name: str, share: float, systems: dict[str, str] | None = None, pieces: int = 1
    ) -> Artifact:
        chance = random.Random(7)
        references = [" ".join(chance.choices(WORDS, k=chance.randint(4, 12))) for _ in range(ROWS)]
        other = random.Random(name)
        table = pl.DataFrame(
            [
                {
                    "id": f"{number:05d}", "split": "test", "task": "t", "modalities": "text",
                    "text": "x", "reference": text, "where": ["home", "away", None][number % 3],
                    "hypothesis": " ".join(w for w in text.split() if other.random() > share),
                    "part": piece, "finished": True,
                }
                for number, text in enumerate(references)
                for piece in range(pieces)
            ]
        )  # fmt: skip
        folder = tmp_path / name
        for shard in range(SHARDS):
            part = table.gather_every(SHARDS, shard)
            write_table(part, folder / "predictions" / "rows" / f"{shard}.parquet")
        facts = {"languages": {}, "labels": [], "modalities": ["text"]}
        properties = {"tasks": {"t": facts}, "scored_references": False, "diversity": False}
        source = loose_artifact(folder / "predictions", rows=len(table), properties=properties)
        output, scratch = folder / "scores", folder / "scratch"
        output.mkdir()
        scratch.mkdir()
        events = Events(None)
        context = Context("score", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
        config = ScoreConfig(
            metrics=["bleu", "chrf", "exact_match"], slices=["where"], systems=systems or {}
        )
        inputs = {"predictions": (source,), "records": ()}
        result = ScoreStage(config).run(context, inputs)
        made = loose_artifact(output, rows=result.rows, properties=dict(result.properties))
        return replace(made, manifest=made.manifest.model_copy(update={"kind": "scores"}))

    return make


def by_key(entries: list[Any]) -> dict[Any, Any]:
    return {
        (entry.metric, str(entry.slice), getattr(entry, "system", None)): entry for entry in entries
    }


def test_intervals_of_bundles_are_as_wide(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred sums of three segments say as much about the corpus as six hundred segments."""
    exact = by_key(scored("a", 0.2).scores())
    monkeypatch.setattr(bundles, "MOST_BUNDLES", 200)
    monkeypatch.setattr(bundles, "TOGETHER", 250)  # several passes
    few = by_key(scored("b", 0.2).scores())
    assert exact.keys() == few.keys() and len(exact) == 9
    monkeypatch.undo()
    again = by_key(scored("a2", 0.2).scores())
    for key, score in few.items():
        other: Score = again[key]
        assert score.n == other.n == (200 if other.slice else 600)
        assert score.ci95 is not None and other.ci95 is not None
        wide, expected = (end - start for start, end in (score.ci95, other.ci95))
        assert wide == pytest.approx(expected, rel=0.35)
        assert score.ci95[0] < other.value < score.ci95[1] or score.value != other.value


def test_many_segments_are_compared_in_buckets(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = scored("ours", 0.2), scored("theirs", 0.25)
    whole = by_key(comparing.compared(ours, theirs))
    monkeypatch.setattr(comparing, "BUCKET_ROWS", 50)
    monkeypatch.setattr(bundles, "TOGETHER", 900)
    parts = by_key(comparing.compared(ours, theirs))
    assert whole.keys() == parts.keys() and len(whole) == 9
    for key, entry in parts.items():
        other: Comparison = whole[key]
        for name in ("n", "common", "changed", "value", "baseline", "difference"):
            assert getattr(entry, name) == getattr(other, name)
        assert entry.ci95 == pytest.approx(
            other.ci95, abs=0.1 * abs(np.subtract(*other.ci95)) + 0.01
        )
        assert entry.p == pytest.approx(other.p, abs=0.02)
    assert whole["bleu", "None", None].p < 0.01


def test_segments_that_the_other_lacks_are_counted(scored: Scored) -> None:
    ours, theirs = scored("ours", 0.2), scored("theirs", 0.25)
    lost = 0
    for path in sorted(theirs.folder.glob("segments/*")):
        table = pl.read_parquet(path)
        write_table(table.filter(pl.col("id").str.ends_with("1").not_()), path)
        lost += int(table["id"].str.ends_with("1").sum())
    for size in (100_000, 10):
        comparing_size = pytest.MonkeyPatch()
        comparing_size.setattr(comparing, "BUCKET_ROWS", size)
        entry = by_key(comparing.compared(ours, theirs))["bleu", "None", None]
        comparing_size.undo()
        assert (entry.n, entry.common) == (ROWS, ROWS - lost) and lost == 60


def test_pieces_of_a_sound_are_compared_one_by_one(scored: Scored) -> None:
    """They have the same id and reference."""
    ours = scored("ours", 0.2, pieces=2)
    entry = by_key(comparing.compared(ours, ours))["bleu", "None", None]
    assert (entry.n, entry.common, entry.changed) == (2 * ROWS, 2 * ROWS, 0)
    first = pl.read_parquet(sorted(ours.folder.glob("segments/*"))[0]).row(0, named=True)
    reference = pl.read_parquet(ours.folder.parent / "predictions" / "rows" / "0.parquet")
    assert first["asked"] == content_hash("00000", reference["reference"][0])


def test_another_systems_lines_are_read_beside_the_rows(scored: Scored, tmp_path: Path) -> None:
    ours = scored("ours", 0.2)
    rows = [
        pl.read_parquet(tmp_path / "ours" / "predictions" / "rows" / f"{n}.parquet")
        for n in range(SHARDS)
    ]
    references = pl.concat(rows)["reference"].to_list()
    (tmp_path / "best.t.test.txt").write_text("\n".join(references) + "\n")
    (tmp_path / "same.t.test.txt").write_text("\n".join(pl.concat(rows)["hypothesis"]))
    artifact = scored(
        "beside", 0.2, {"best": "best.{task}.{split}.txt", "same": "same.{task}.{split}.txt"}
    )
    scores = {(score.baseline, score.metric): score for score in artifact.scores()}
    assert scores["best", "exact_match"].value == 1
    own = by_key(ours.scores())["bleu", "None", None]
    assert scores["same", "bleu"].value == own.value
    for lines, count in ((references[:-1], 599), ([*references, ""], 601)):
        (tmp_path / "best.t.test.txt").write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(ValueError, match=f"has {count} lines, but t has 600 rows in test"):
            scored(f"wrong-{count}", 0.2, {"best": "best.{task}.{split}.txt"})
