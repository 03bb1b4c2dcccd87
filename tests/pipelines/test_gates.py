from __future__ import annotations

import pytest

from pipelines.gates import Evidence, parse_gate

SCORES = [
    {"metric": "bleu", "task": "translate", "value": 10.5},
    {"metric": "bleu", "task": "caption", "value": 4.0},
    {"metric": "accuracy", "task": "digits", "value": 0.97},
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


@pytest.mark.parametrize("text", ["bleu", "bleu = 3", "bleu >= high", ">= 3", None, 3])
def test_not_a_gate(text: object) -> None:
    with pytest.raises(ValueError, match="is not a gate"):
        parse_gate(text)
