"""Which stages a run executes, and what it would do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pipelines.contracts.shown import complain
from pipelines.planning.planner import Decision, Planner, lack_of_room, previous_parts
from pipelines.reading.spec import PipelineSpec
from pipelines.store.runs_dir import RunsDir


@dataclass(frozen=True)
class Selection:
    """The stages that a run executes. Results of other stages are used if they are cached."""

    only: Sequence[str] = ()
    start: str | None = None
    end: str | None = None
    force: Collection[str] = field(default_factory=tuple)

    def stages(self, spec: PipelineSpec) -> list[str]:
        """The stages that are allowed to run, in order."""
        if self.only:
            return [name for name in spec.stages if name in self.only]
        chosen = set(spec.stages)
        if self.start is not None:
            chosen &= {self.start} | spec.descendants(self.start)
        if self.end is not None:
            chosen &= {self.end} | spec.ancestors(self.end)
        return [name for name in spec.stages if name in chosen]

    @property
    def partial(self) -> bool:
        return bool(self.only or self.start or self.end)


def plan(spec: PipelineSpec, runs: RunsDir, selection: Selection) -> list[Decision]:
    """What a run would do, without doing it; says on stderr if the disk may be too small for it."""
    runs.pull(spec.name)
    previous = previous_parts(runs.folder / spec.name)
    planner = Planner(spec, runs.store(), previous, selection.force)
    chosen = selection.stages(spec)
    decisions = []
    for name in spec.stages:
        decision = planner.decide(name)
        if name not in chosen and decision.action == "run":
            decision = Decision(name, "skip", f"not selected, and not cached ({decision.reason})")
        decisions.append(decision)
    running = [decision.stage for decision in decisions if decision.action == "run"]
    needed = sum(planner.bytes_to_read(spec.stages[name]) for name in running)
    lacking = lack_of_room(needed, runs.folder)
    if lacking:
        complain(lacking)
    return decisions
