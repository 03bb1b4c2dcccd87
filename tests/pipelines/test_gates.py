from __future__ import annotations

import pytest

from pipelines.contracts.runs import StageRecord
from pipelines.contracts.scores import Comparison, Score
from pipelines.judging.gates import Evidence, parse_gate

SCORES = [
    Score(metric="bleu", task="translate", split="test", value=10.5),
    Score(metric="bleu", task="caption", split="test", value=4.0),
    Score(metric="accuracy", task="digits", split="test", value=0.97),
]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("bleu >= 4", True),
        ("bleu >= 5", False),
        ("bleu:translate > 10", True),
        ("accuracy:digits >= 97%", True),
        ("accuracy:digits > 0.97", False),
        ("bleu < 11", True),
        ("ter <= 90", False),
    ],
)
def test_gate(text: str, passed: bool) -> None:
    assert parse_gate(text).check(Evidence(SCORES))[0] is passed


def compared(difference: float, p: float, **facts: object) -> Comparison:
    known = {
        "metric": "bleu", "task": "translate", "split": "test", "value": 10.5, "baseline": 10.5,
        "n": 9, "common": 9, "changed": 9, "ci95": (-2, 2), "p_bootstrap": p, "p_randomisation": p,
    }  # fmt: skip
    return Comparison.model_validate({**known, "difference": difference, "p": p, **facts})


@pytest.mark.parametrize(
    ("entries", "passed"),
    [
        ([compared(-1, 0.04)], False),
        ([compared(-1, 0.06)], True),
        ([compared(1, 0.001)], True),
        ([compared(0, 1.0), compared(-1, 0.001, task="caption")], False),
        ([compared(1, 0.5), compared(-1, 0.001, slice={"a": "b"})], True),
        ([compared(-1, 0.001, metric="chrf")], False),
    ],
)
def test_significance(entries: list[Comparison], passed: bool) -> None:
    gate = parse_gate("bleu not significantly below baseline (p < 0.05)")
    assert gate.check(Evidence(SCORES, {}, "night/1", entries))[0] is passed
    assert gate.check(Evidence(SCORES))[0] is True
    assert gate.check(Evidence([], {}, "night/1", entries))[0] is False


def test_significance_of_one_task_the_other_way_and_of_another_p() -> None:
    gate = parse_gate("bleu:translate not significantly above baseline (p < .1)")
    assert gate.check(Evidence(SCORES, {}, "n", [compared(-1, 0.01)]))[0]
    assert gate.check(
        Evidence(SCORES, {}, "n", [compared(1, 0.01, task="caption"), compared(1, 0.2)])
    )[0]
    assert not gate.check(Evidence(SCORES, {}, "n", [compared(1, 0.08)]))[0]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("rejected share <= 1%", False),
        ("rejected share <= 20%", True),
        ("rejected share:text <= 1%", True),
        ("rejected share:rows < 0.1", False),
        ("rejected share:nowhere <= 1%", False),
    ],
)
def test_rejected_share(text: str, passed: bool) -> None:
    stages = {
        "rows": StageRecord(status="ran", reason="", rows=90, rejected={"bad": 7, "worse": 3}),
        "text": StageRecord(status="cached", reason="", rows=90),
    }
    assert parse_gate(text).check(Evidence([], stages))[0] is passed


@pytest.mark.parametrize(
    "text",
    [
        "bleu not significantly below",
        "rejected share",
        "bleu",
        "bleu = 3",
        "bleu >= high",
        ">= 3",
        None,
        3,
    ],
)
def test_not_a_gate(text: object) -> None:
    with pytest.raises(ValueError, match="is not a gate"):
        parse_gate(text)
