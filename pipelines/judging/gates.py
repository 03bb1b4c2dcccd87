"""Quality gates: what must hold of a run's scores before it counts as good.

- `bleu >= 10`, `accuracy:digits >= 97%`: a score, of one task or of all, and a bound;
- `bleu not significantly below baseline (p < 0.05)`: the same scored segments in another run;
- `rejected share <= 1%`, `rejected share:rows <= 1%`: rows kept aside, of any stage or of one.
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
    """What gates judge a run by."""

    scores: Sequence[Score]
    """The run's own, and those of other systems."""
    stages: Mapping[str, StageRecord] = field(default_factory=dict)
    baseline: str | None = None
    """The run that scores are compared with."""
    comparison: Sequence[Comparison] = ()

    def own(self, metric: str, task: str | None) -> list[Score]:
        """The run's own scores over all rows."""
        return [score for score in _whole(self.scores, metric, task) if score.own]


@dataclass(frozen=True)
class Gate(ABC):
    """One condition, as it was written."""

    text: str

    @abstractmethod
    def check(self, evidence: Evidence) -> tuple[bool, str]:
        """Whether it holds, and a sentence with the values."""

    def said(self, passed: bool, values: str) -> tuple[bool, str]:
        return passed, f"{self.text}: {'passed' if passed else 'FAILED'} with {values}"


@dataclass(frozen=True)
class ScoreGate(Gate):
    """One bound on every score of a metric, or on those of one task. No such score is a failure.
    Scores of slices and of baselines do not count."""

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
    """No score of a metric is worse than the baseline's by more than chance: the p-value is that
    of paired approximate randomisation. Without a baseline it holds."""

    metric: str
    task: str | None
    side: str
    p: float

    def check(self, evidence: Evidence) -> tuple[bool, str]:
        if not evidence.own(self.metric, self.task):
            return False, f"{self.text}: no such score"
        if evidence.baseline is None:
            return True, f"{self.text}: passed, for there is no baseline yet"
        found = _whole(evidence.comparison, self.metric, self.task)
        if not found:
            return False, (
                f"{self.text}: FAILED, for {evidence.baseline} has no {self.metric} of the same "
                "segments and signature; to make this run the baseline, run it once without this "
                "gate"
            )
        sign = -1 if self.side == "below" else 1
        worse = [
            one for one in found
            if sign * one.difference > 0 and one.p < self.p
        ]  # fmt: skip
        values = (
            f"{one.value:.4g} against {one.baseline:.4g} (p = {one.p:.4f})"
            for one in worse or found
        )
        return self.said(not worse, ", ".join(values))


@dataclass(frozen=True)
class RejectedGate(Gate):
    """A bound on the share of rows that a stage kept aside, of one stage or of every one."""

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
    """Entries of a metric that are of no slice."""
    return [
        entry
        for entry in entries
        if entry.metric == metric and task in (None, entry.task) and entry.whole
    ]


def parse_gate(text: Any) -> Gate:
    """Raises `ValueError` with an example where the text is no gate."""
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
    """The gates as JUnit's XML, which CI systems show: one test case each."""
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
