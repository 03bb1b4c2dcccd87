"""For each stage: decide, run, publish. Records the run; resumes; says how to continue."""

from __future__ import annotations

import platform
import secrets
import shutil
import signal
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from pipelines.contracts.runs import RUN, RUN_FORMAT, GateOutcome, Machine, RunRecord, StageRecord
from pipelines.judging.baseline import BaselineRun, find_baseline
from pipelines.judging.gates import Evidence, write_junit
from pipelines.planning.fingerprint import library_versions
from pipelines.planning.planner import Decision, Planner, previous_parts
from pipelines.reading.spec import PipelineSpec, StageSpec
from pipelines.running.beam_jobs import BeamJobs, available_cpus, without_misleading_warnings
from pipelines.running.events import Events
from pipelines.stage import Context, Result, RunView
from pipelines.store.artifacts import Artifact, LockHeldError, Store, lock
from pipelines.store.files import write_json
from pipelines.version import VERSION

DONE, STAGE_FAILED, SPEC_WRONG, GATE_FAILED, LOCKED = 0, 1, 2, 3, 75
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h, for schedulers that retry."""


class Stopped(BaseException):
    """The process got SIGINT or SIGTERM. Not an Exception: no stage is allowed to swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class AccountingError(Exception):
    """A stage lost rows, or returned more than it took."""


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


def plan(spec: PipelineSpec, runs_dir: Path, selection: Selection) -> list[Decision]:
    """What a run would do, without doing it."""
    planner = Planner(
        spec,
        Store(runs_dir / "store"),
        previous_parts(runs_dir / spec.name),
        selection.force,
    )
    chosen = selection.stages(spec)
    decisions = []
    for name in spec.stages:
        decision = planner.decide(name)
        if name not in chosen and decision.action == "run":
            decision = Decision(name, "skip", f"not selected, and not cached ({decision.reason})")
        decisions.append(decision)
    return decisions


class Executor:
    """One run of one pipeline."""

    def __init__(
        self, spec: PipelineSpec, runs_dir: Path, selection: Selection, resume_command: str
    ) -> None:
        self.spec, self.runs_dir, self.selection = spec, runs_dir, selection
        self.resume_command = resume_command
        self.home = runs_dir / spec.name
        self.store = Store(runs_dir / "store")
        self.planner = Planner(spec, self.store, previous_parts(self.home), selection.force)
        started = datetime.now(UTC)
        # Sorted by name, runs are in the order in which they started.
        self.run_id = f"{started.strftime('%Y%m%dT%H%M%S-%f')}-{secrets.token_hex(2)}"
        self.folder = self.home / self.run_id
        self.record = RunRecord(
            format=RUN_FORMAT,
            pipeline=spec.name,
            run=self.run_id,
            started=started.isoformat(timespec="seconds"),
            status="running",
            seed=spec.seed,
            machine=Machine(
                platform=platform.platform(),
                cpus=available_cpus(),
                python=platform.python_version(),
                version=VERSION,
            ),
            stages={},
            gates=(),
            baseline=None,
            comparison=(),
        )
        self.baseline: BaselineRun | None = None

    def run(self) -> int:
        """Runs to the end and returns the exit code."""
        try:
            with lock(self.home / ".lock"), stop_signals():
                return self._run_locked()
        except LockHeldError:
            print_error(
                f"another run of pipeline {self.spec.name!r} holds {self.home / '.lock'}; "
                "try again when it has ended, or give this one another name:"
            )
            return LOCKED

    def _run_locked(self) -> int:
        self.folder.mkdir(parents=True)
        self.events = Events(self.folder / "events.jsonl")
        self._save()
        code = STAGE_FAILED
        current = ""
        try:
            self.baseline = find_baseline(self.home, self.spec.baseline)
            with without_misleading_warnings():
                for current in self.spec.stages:
                    self._stage(current)
            current = ""
            code = self._gates()
            self._finish("complete" if code == DONE else "gate failed", code)
        except Stopped as stop:
            code = stop.exit_code
            self._finish("stopped", code)
            self._advise(f"stopped by {stop} in {current or 'the last step'}")
        except Exception as error:
            self.events.record("failed", stage=current, error=traceback.format_exc())
            self._finish("failed", code, error=f"{current}: {error}")
            self._advise(f"{current} failed: {type(error).__name__}: {error}")
        finally:
            self.events.close()
        return code

    def _advise(self, what: str) -> None:
        self.events.show(f"\n{what}")
        if (self.folder / "events.jsonl").exists():
            self.events.show(f"details: {self.folder / 'events.jsonl'}")
        self.events.show(f"to continue from here: {self.resume_command}")

    def _finish(self, status: str, code: int, **facts: Any) -> None:
        self.events.stage = ""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        changes = {"status": status, "exit_code": code, "ended": ended, **facts}
        self.record = self.record.model_copy(update=changes)
        self._save()
        self.events.record("run " + status, exit_code=code, **facts)
        if status == "stopped" or status == "failed":
            return
        for name, artifact in self.planner.artifacts.items():
            stage = self.spec.stages[name].stage
            stage.present(artifact, RunView(self.folder, self.record))
        whole = set(self.planner.artifacts) == set(self.spec.stages)
        if code == DONE and whole:
            self._point_latest()
        report = self.folder / "report" / "index.html"
        if report.exists():
            self.events.show(f"report: {report}")

    def _point_latest(self) -> None:
        temporary = self.home / f".latest-{self.run_id}"
        temporary.symlink_to(self.run_id)
        temporary.replace(self.home / "latest")

    def _save(self) -> None:
        write_json(self.folder / RUN, self.record.to_json())

    def _stage(self, name: str) -> None:
        spec = self.spec.stages[name]
        self.events.stage = name
        chosen = name in self.selection.stages(self.spec)
        decision = self.planner.decide(name)
        if decision.fingerprint is None:
            if chosen:
                missing = ", ".join(s for s in spec.upstream if s not in self.planner.artifacts)
                raise RuntimeError(f"its input {missing} is neither cached nor selected to run")
            self._skip(decision)
            return
        if decision.action == "cached":
            self._remember(decision, "cached", decision.artifact, 0.0, decision.reason)
            self.events.show(f"{name}: cached")
            return
        if not chosen:
            self._skip(decision)
            self.events.show(f"{name}: skipped, not selected")
            return
        self.events.say(f"running, because {decision.reason}")
        fingerprint = decision.fingerprint
        waited: list[str] = []

        def wait() -> None:
            if not waited:
                self.events.say("waiting for another run that is making the same result")
                waited.append(name)

        with self.store.lease(fingerprint, wait):
            existing = self.store.find(name, fingerprint)
            if existing is not None and name not in self.selection.force:
                self.planner.artifacts[name] = existing
                self._remember(decision, "cached", existing, 0.0, "made by another run meanwhile")
                return
            self._make(spec, decision)

    def _make(self, spec: StageSpec, decision: Decision) -> None:
        name, fingerprint = spec.name, decision.fingerprint
        assert fingerprint is not None and decision.parts is not None
        if name in self.selection.force:
            self.store.discard(name, fingerprint)
        workspace = self.store.workspace(name, fingerprint)
        output = workspace / "output"
        # Half-written files of a killed run; what can be used again of it is in scratch.
        shutil.rmtree(output)
        output.mkdir()
        lineage = {
            stage: self.planner.artifacts[stage]
            for stage in self.spec.stages
            if stage in self.spec.ancestors(name)
        }
        context = Context(
            stage=name,
            seed=self.spec.seed,
            base=self.spec.path.parent,
            output=output,
            scratch=workspace / "scratch",
            threads=available_cpus(),
            progress=self.events,
            beam=BeamJobs(self.spec.beam, self.events, self.folder / "beam.log"),
            lineage=lineage,
        )
        inputs = {
            key: tuple(self.planner.artifacts[stage] for stage in stages)
            for key, stages in spec.inputs.items()
        }
        started = time.monotonic()
        result = spec.stage.run(context, inputs)
        seconds = time.monotonic() - started
        check_accounts(name, result)
        artifact = self.store.publish(
            name,
            fingerprint,
            kind=spec.stage.output,
            parts=decision.parts,
            rows=result.rows,
            rejected=result.rejected,
            properties=result.properties,
            versions=library_versions(spec.stage.libraries),
            measured={**result.measured, "seconds": seconds},
        )
        self.planner.artifacts[name] = artifact
        self._remember(decision, "ran", artifact, seconds, decision.reason)
        rejected = sum(result.rejected.values())
        aside = f", {rejected:,} rejected" if rejected else ""
        self.events.say(f"done in {seconds:.1f} s: {result.rows:,} rows{aside}")

    def _skip(self, decision: Decision) -> None:
        stage = StageRecord(status="skipped", reason=decision.reason)
        self.record = self.record.with_stage(decision.stage, stage)

    def _remember(
        self,
        decision: Decision,
        status: Literal["ran", "cached"],
        artifact: Artifact | None,
        seconds: float,
        reason: str,
    ) -> None:
        assert artifact is not None
        measured = self.store.measured(artifact)
        stage = StageRecord(
            status=status,
            reason=reason,
            seconds=round(seconds, 3),
            made_in_seconds=measured.pop("seconds", None),
            measured=measured,
            kind=artifact.kind,
            rows=artifact.rows,
            rejected=artifact.rejected,
            digest=artifact.digest,
            fingerprint=artifact.fingerprint,
            artifact=str(artifact.folder.relative_to(self.runs_dir)),
            parts=artifact.manifest.parts,
        )
        self.record = self.record.with_stage(decision.stage, stage)
        self._save()
        self.events.record(status, reason=reason, digest=artifact.digest)

    def _gates(self) -> int:
        results = {
            name: (self.spec.stages[name].stage, artifact)
            for name, artifact in self.planner.artifacts.items()
        }
        scores = [score for stage, artifact in results.values() for score in stage.scores(artifact)]
        self.record = self.record.model_copy(update={"scores": tuple(scores)})
        if self.selection.partial and not scores:
            return DONE
        name, comparison = None, []
        if self.baseline is not None:
            name, comparison = self.baseline.name, self.baseline.compare(results)
        evidence = Evidence(scores, self.record.stages, name, comparison)
        outcomes = []
        for gate in self.spec.gates:
            passed, message = gate.check(evidence)
            outcomes.append(GateOutcome(gate=gate.text, passed=passed, message=message))
            self.events.say(f"gate {message}")
        changes = {"baseline": name, "comparison": tuple(comparison), "gates": tuple(outcomes)}
        self.record = self.record.model_copy(update=changes)
        write_junit(self.folder / "gates.xml", self.spec.name, outcomes)
        return DONE if all(outcome.passed for outcome in outcomes) else GATE_FAILED


def check_accounts(stage: str, result: Result) -> None:
    """Checks for every stage that rows in = rows out + rejected."""
    rejected = sum(result.rejected.values())
    if result.rows_in != result.rows + rejected:
        raise AccountingError(
            f"{stage} took {result.rows_in} rows but returned {result.rows} and rejected {rejected}"
        )


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped` in the main thread; a second one ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_error(message: str) -> None:
    import sys

    print(message, file=sys.stderr, flush=True)
