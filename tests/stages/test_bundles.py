"""Scores and comparisons of many segments: bundles of them, read some at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse import issparse

from pipelines.contracts.scores import Score
from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.stage import Context
from pipelines.store.artifacts import Artifact, loose_artifact
from stages.measures import bundles
from stages.measures.bundles import Bundles, Place, by_place, in_passes
from stages.measures.metrics import MetricName
from stages.measures.statistics import statistic
from stages.rows.shards import content_hash, write_table
from stages.score import comparing
from stages.score.options import ScoreConfig
from stages.score.stage import Score as ScoreStage

LABELS = ("cat", "dog", "owl")
WORDS = ["red", "blue", "the", "a", "house", "river", "walks", "sings"]
ROWS, SHARDS = 600, 3


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 14, 15, 16, 29, 50, 113])
@pytest.mark.parametrize("step", [1, 3, 4, 100])
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
    collected = Bundles(measures)
    for start in range(0, rows, step):
        collected.add(packed[start : start + step])
    size = next(2**power for power in range(9) if rows // 2**power <= 7)
    for name, found in collected.statistics().items():
        assert issparse(found) == (name == "macro_f1")
        dense = found.toarray() if issparse(found) else found
        expected = [whole[name][start : start + size].sum(axis=0) for start in range(0, rows, size)]
        assert np.array_equal(dense, expected)
        assert len(dense) <= 8


def test_single_segments_are_drawn_in_the_order_of_their_places() -> None:
    measures = {"accuracy": statistic("accuracy", "13a", LABELS)}
    rows = [[float(n), 1.0] for n in range(6)]
    collected = Bundles(measures)
    for part in ([4, 0], [5, 1], [2, 3]):
        table = pl.DataFrame({"accuracy": pl.Series(np.array([rows[n] for n in part]))})
        collected.add(table, places=np.array(part))
    assert collected.statistics()["accuracy"].tolist() == rows


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
        name: str,
        share: float,
        systems: dict[str, str] | None = None,
        pieces: int = 1,
        texts: Sequence[str] = (),
        second: Sequence[str | None] = (),
        metrics: Sequence[MetricName] = ("bleu", "chrf", "exact_match"),
    ) -> Artifact:
        chance = random.Random(7)
        lengths = (chance.randint(4, 12) for _ in range(ROWS))
        references = texts or [" ".join(chance.choices(WORDS, k=length)) for length in lengths]
        other = random.Random(name)
        table = pl.DataFrame(
            [
                {
                    "id": f"{number:05d}", "split": "test", "task": "t", "modalities": "text",
                    "text": "x", "reference": text, "where": ["home", "away", None][number % 3],
                    "hypothesis": " ".join(w for w in text.split() if other.random() > share),
                    "part": piece, "second": second[number] if second else None,
                }
                for number, text in enumerate(references)
                for piece in range(pieces)
            ],
            schema_overrides={"second": pl.String},
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
            metrics=list(metrics),
            slices=["where"],
            systems=systems or {},
            references=["second"] if second else [],
        )
        inputs = {"predictions": (source,), "records": ()}
        result = ScoreStage(config).run(context, inputs)
        made = loose_artifact(output, rows=result.rows, properties=dict(result.properties))
        return replace(made, manifest=made.manifest.model_copy(update={"kind": "scores"}))

    make.folder = tmp_path  # type: ignore[attr-defined]
    return make


def by_key(entries: list[Any]) -> dict[Any, Any]:
    return {
        (entry.metric, str(entry.slice), getattr(entry, "system", None)): entry for entry in entries
    }


def test_intervals_of_bundles_are_as_wide(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred and fifty sums of four segments say as much about the corpus as six hundred
    segments."""
    exact = by_key(scored("same", 0.2).scores())
    monkeypatch.setattr(bundles, "MOST_BUNDLES", 200)
    monkeypatch.setattr(bundles, "TOGETHER", 250)  # several passes
    (scored.folder / "same").rename(scored.folder / "before")  # type: ignore[attr-defined]
    few = by_key(scored("same", 0.2).scores())
    assert exact.keys() == few.keys() and len(exact) == 9
    for key, score in few.items():
        other: Score = exact[key]
        assert (score.n, score.value) == (other.n, other.value)
        assert score.n == (200 if other.slice else 600)
        assert score.ci95 is not None and other.ci95 is not None
        if other.slice:  # as many segments as bundles are allowed
            assert score.ci95 == other.ci95
        else:
            wide, expected = (end - start for start, end in (score.ci95, other.ci95))
            assert wide == pytest.approx(expected, rel=0.25) and score.ci95 != other.ci95


def test_many_segments_are_compared_in_buckets(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = scored("ours", 0.2), scored("theirs", 0.25)
    whole = by_key(comparing.compared(ours, theirs))
    monkeypatch.setattr(comparing, "BUCKET_ROWS", 50)
    monkeypatch.setattr(bundles, "TOGETHER", 900)
    parts = by_key(comparing.compared(ours, theirs))
    assert whole.keys() == parts.keys() and len(whole) == 9
    # Also the order in which segments are drawn is the same.
    assert whole == parts
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


def test_few_common_segments_of_many_are_drawn_one_by_one(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = scored("ours", 0.2), scored("theirs", 0.25)
    for path in sorted(theirs.folder.glob("segments/*")):
        table = pl.read_parquet(path)
        write_table(table.filter(pl.col("id").str.ends_with("7")), path)
    exact = by_key(comparing.compared(ours, theirs))
    monkeypatch.setattr(bundles, "MOST_BUNDLES", 60)
    assert by_key(comparing.compared(ours, theirs)) == exact
    assert exact["bleu", "None", None].common == 60


def test_a_segment_that_the_other_has_twice_is_not_common(scored: Scored) -> None:
    """So runs of earlier versions had the pieces of a sound."""
    ours, theirs = scored("ours", 0.2), scored("theirs", 0.2)
    path = sorted(theirs.folder.glob("segments/*"))[0]
    table = pl.read_parquet(path)
    write_table(pl.concat([table, table.head(9)]), path)
    entry = by_key(comparing.compared(ours, theirs))["bleu", "None", None]
    assert (entry.n, entry.common) == (ROWS, ROWS - 9)


def test_buckets_without_a_task(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of segments, and buckets, can lack a task with its metrics."""
    monkeypatch.setattr(comparing, "BUCKET_ROWS", 40)
    both = []
    for name in ("ours", "theirs"):
        artifact = scored(name, 0.2)
        (first, *_) = sorted(artifact.folder.glob("segments/*"))
        single = pl.read_parquet(first).head(1).with_columns(task=pl.lit("other"))
        single = single.select("id", "task", "split", "asked", "said", "references", "exact_match")
        single = single.rename({"exact_match": "accuracy"})
        write_table(single, first.with_name("zzz.parquet"))
        scores = json.loads((artifact.folder / "scores.json").read_text())
        more = {**scores[0], "task": "other", "metric": "accuracy", "n": 1}
        (artifact.folder / "scores.json").write_text(json.dumps([*scores, more]))
        scoring = artifact.properties["scoring"]
        scoring["other"] = {**scoring["t"], "metrics": ["accuracy"], "labels": ["a"]}
        both.append(artifact)
    entries = comparing.compared(*both)
    assert {entry.task for entry in entries} == {"t", "other"}
    assert next(entry for entry in entries if entry.task == "other").common == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_another_system(scored: Scored, tmp_path: Path, end: str) -> None:
    scored("ours", 0.2)
    rows = [
        pl.read_parquet(tmp_path / "ours" / "predictions" / "rows" / f"{n}.parquet")
        for n in range(SHARDS)
    ]
    text = end.join(pl.concat(rows)["reference"])
    for name, last in (("a", ""), ("b", end)):
        (tmp_path / "t.test.txt").write_bytes(f"{text}{last}".encode())
        made = scored(name, 0.2, {"best": "{task}.{split}.txt"})
        values = {s.metric: s.value for s in made.scores() if s.baseline == "best"}
        assert values["exact_match"] == 1
    (tmp_path / "t.test.txt").rename(tmp_path / "u.test.txt")
    with pytest.raises(ValueError, match=r"there is no file .* for any task; the tasks are t"):
        scored("none", 0.2, {"best": "{task}.{split}.txt"})


def test_bleu_is_left_out_where_no_reference_has_four_words(scored: Scored) -> None:
    """Of a whole, not of a slice; and references of any file count."""
    short = ["red house"] * ROWS
    found = by_key(scored("short", 0.0, texts=short, metrics=[]).scores())
    assert not any(metric == "bleu" for metric, *_ in found)
    # Only the first file has a long one, in the slice "home".
    found = by_key(
        scored("one", 0.0, texts=["the red house sings", *short[1:]], metrics=[]).scores()
    )
    assert {cut for metric, cut, _ in found if metric == "bleu"} == {
        "None", "{'where': 'away'}", "{'where': 'home'}"
    }  # fmt: skip


def test_the_signature_says_that_references_differ_in_number(scored: Scored) -> None:
    texts = ["the red house sings"] * ROWS
    for name, second, wanted in (
        ("both", texts, "nrefs:2"),
        ("first", [texts[0], *[None] * (ROWS - 1)], "nrefs:var"),
        ("last", [*[None] * (ROWS - 1), texts[0]], "nrefs:var"),
    ):
        found = by_key(scored(name, 0.1, texts=texts, second=second).scores())
        assert found["bleu", "None", None].signature.startswith(wanted)
