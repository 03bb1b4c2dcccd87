"""Quality gates: conditions that a run's scores must meet before it counts as good.

- `bleu >= 10`, `accuracy:digits >= 97%`: a bound on a score, of all tasks or of one;
- `bleu not significantly below baseline (p < 0.05)`: a test against the same segments in another
  run;
- `rejected share <= 1%`, `rejected share:rows <= 1%`: rejected rows, of every stage or of one.
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from pipelines.contracts.runs import GateOutcome, StageRecord
from pipelines.contracts.scores import Comparison, Score
from pipelines.store.files import replacing

COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
BOUND = r"\s*(?P<comparison>>=|<=|>|<)\s*(?P<bound>-?\d+(?:\.\d+)?)\s*(?P<percent>%)?\s*"
SCORE = re.compile(r"\s*(?P<metric>[\w-]+)(?::(?P<task>[\w-]+))?" + BOUND)
REJECTED = re.compile(r"\s*rejected share(?::(?P<stage>[\w-]+))?" + BOUND)
SIGNIFICANT = re.compile(
    r"\s*(?P<metric>[\w-]+)(?::(?P<task>[\w-]+))? not significantly (?P<side>below|above) baseline"
    r"(?:\s*\(p\s*<\s*(?P<p>0?\.\d+)\))?\s*"
)


@dataclass(frozen=True)
class Evidence:
    """The facts that gates judge a run by."""

    scores: Sequence[Score]
    """The run's own scores, and those of other systems."""
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    baseline: str | None = None
    """The run that scores are compared with."""
    comparison: Sequence[Comparison] = ()

    def own(self, metric: str, task: str | None) -> list[Score]:
        """The run's own scores over all rows."""
        return [score for score in _whole(self.scores, metric, task) if score.own]


@dataclass(frozen=True)
class Gate(ABC):
    """One condition, with the text that the user wrote."""

    text: str

    @abstractmethod
    def check(self, evidence: Evidence) -> tuple[bool, str]:
        """Whether it holds, and a sentence with the values."""

    def said(self, passed: bool, values: str) -> tuple[bool, str]:
        return passed, f"{self.text}: {'passed' if passed else 'FAILED'} with {values}"


@dataclass(frozen=True)
class ScoreGate(Gate):
    """One bound on every score of a metric, or on those of one task. It fails if there is no such
    score. Scores of slices and of baselines do not count."""

    metric: str
    task: str | None
    comparison: str
    bound: float

    def check(self, evidence: Evidence) -> tuple[bool, str]:
        values = [score.value for score in evidence.own(self.metric, self.task)]
        if not values:
            return False, f"{self.text}: no such score"
        passed = all(COMPARISONS[self.comparison](value, self.bound) for value in values)
        return self.said(passed, ", ".join(f"{value:.4g}" for value in values))


@dataclass(frozen=True)
class SignificanceGate(Gate):
    """No score of a metric is significantly worse than the baseline's: the p-value is that of
    paired approximate randomisation. Without a baseline the gate passes."""

    metric: str
    task: str | None
    side: str
    p: float

    def check(self, evidence: Evidence) -> tuple[bool, str]:
        if not evidence.own(self.metric, self.task):
            return False, f"{self.text}: no such score"
        if evidence.baseline is None:
            return True, f"{self.text}: passed, because there is no baseline yet"
        comparisons = _whole(evidence.comparison, self.metric, self.task)
        if not comparisons:
            return False, (
                f"{self.text}: FAILED, because {evidence.baseline} has no {self.metric} with the "
                "same segments and signature; to make this run the baseline, run it once without "
                "this gate"
            )
        sign = -1 if self.side == "below" else 1
        worse = [
            entry for entry in comparisons
            if sign * entry.difference > 0 and entry.p < self.p
        ]  # fmt: skip
        values = (
            f"{entry.value:.4g} against {entry.baseline:.4g} (p = {entry.p:.4f})"
            for entry in worse or comparisons
        )
        return self.said(not worse, ", ".join(values))


@dataclass(frozen=True)
class RejectedGate(Gate):
    """A bound on the share of rows that a stage rejected, for one stage or for every stage."""

    stage: str | None
    comparison: str
    bound: float

    def check(self, evidence: Evidence) -> tuple[bool, str]:
        shares = {}
        for name, facts in evidence.stages.items():
            rejected = sum(facts.rejected.values())
            rows = facts.rows + rejected
            if self.stage in (None, name) and rows:
                shares[name] = rejected / rows
        if not shares:
            return False, f"{self.text}: no such stage"
        passed = all(COMPARISONS[self.comparison](share, self.bound) for share in shares.values())
        worst = max(shares, key=lambda name: shares[name])
        return self.said(passed, f"{shares[worst]:.2%} in {worst}")


Entry = TypeVar("Entry", Score, Comparison)


def _whole(entries: Iterable[Entry], metric: str, task: str | None) -> list[Entry]:
    """Entries of a metric over all rows, without those of slices."""
    return [
        entry
        for entry in entries
        if entry.metric == metric and task in (None, entry.task) and entry.whole
    ]


def parse_gate(text: Any) -> Gate:
    """Raises `ValueError` with examples if the text is not a gate."""
    whole = text.strip() if isinstance(text, str) else ""
    if match := REJECTED.fullmatch(whole):
        return RejectedGate(whole, match["stage"], match["comparison"], _bound(match))
    if match := SIGNIFICANT.fullmatch(whole):
        p = float(match["p"] or 0.05)
        return SignificanceGate(whole, match["metric"], match["task"], match["side"], p)
    if match := SCORE.fullmatch(whole):
        return ScoreGate(whole, match["metric"], match["task"], match["comparison"], _bound(match))
    raise ValueError(
        f"{text!r} is not a gate; write one as bleu >= 10, accuracy:digits > 0.9, "
        "bleu not significantly below baseline (p < 0.05) or rejected share <= 1%"
    )


def _bound(match: re.Match[str]) -> float:
    return float(match["bound"]) / (100 if match["percent"] else 1)


def write_junit(path: Path, pipeline: str, gates: Sequence[GateOutcome]) -> None:
    """Writes the gates as JUnit XML, which CI systems show: one test case for each gate."""
    failed = sum(not gate.passed for gate in gates)
    suite = ElementTree.Element(
        "testsuite", name=f"{pipeline} gates", tests=str(len(gates)), failures=str(failed)
    )
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname=pipeline, name=gate.gate)
        if gate.passed:
            ElementTree.SubElement(case, "system-out").text = gate.message
        else:
            ElementTree.SubElement(case, "failure", message=gate.message)
    tree = ElementTree.ElementTree(suite)
    ElementTree.indent(tree)
    with replacing(path) as temporary:
        tree.write(temporary, encoding="utf-8", xml_declaration=True)
