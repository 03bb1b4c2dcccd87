"""Quality gates: a score compared with a bound, written as `bleu >= 10` or `bleu:translate > 8`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
GATE = re.compile(
    r"\s*(?P<metric>[\w-]+)(?::(?P<task>[\w-]+))?\s*(?P<comparison>>=|<=|>|<)\s*"
    r"(?P<bound>-?\d+(?:\.\d+)?)\s*(?P<percent>%)?\s*"
)


@dataclass(frozen=True)
class Gate:
    """One bound on every score of a metric, or on those of one task."""

    text: str
    metric: str
    task: str | None
    comparison: str
    bound: float

    def check(self, scores: Iterable[Mapping[str, Any]]) -> tuple[bool, str]:
        """Whether it holds, and a sentence with the values. No such score is a failure. Scores of
        slices and of baselines do not count."""
        values = [
            score["value"]
            for score in scores
            if score["metric"] == self.metric
            and self.task in (None, score["task"])
            and not score.get("slice")
            and not score.get("baseline")
        ]
        if not values:
            return False, f"{self.text}: no such score"
        passed = all(COMPARISONS[self.comparison](value, self.bound) for value in values)
        found = ", ".join(f"{value:.4g}" for value in values)
        return passed, f"{self.text}: {'passed' if passed else 'FAILED'} with {found}"


def parse_gate(text: Any) -> Gate:
    """Raises `ValueError` with an example where the text is no gate."""
    match = GATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            f"{text!r} is not a gate; write one as bleu >= 10 or accuracy:digits > 0.9"
        )
    bound = float(match["bound"]) / (100 if match["percent"] else 1)
    return Gate(text.strip(), match["metric"], match["task"], match["comparison"], bound)
