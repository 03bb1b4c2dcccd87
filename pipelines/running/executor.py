"""For each stage: decide, run, publish. Records the run; resumes; says how to continue."""

from __future__ import annotations

import secrets
import shlex
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipelines.contracts.addresses import pools_of
from pipelines.contracts.runs import (
    RUN,
    GateOutcome,
    RunRecord,
    StageRecord,
)
from pipelines.judging.baseline import LATEST, BaselineRun, find_baseline
from pipelines.judging.gates import Evidence, write_junit
from pipelines.planning.fingerprint import library_versions
from pipelines.planning.planner import Decision, Planner, lack_of_room, previous_parts
from pipelines.planning.selection import Selection
from pipelines.reading.spec import PipelineSpec, StageSpec
from pipelines.running.attempts import attempted, limited
from pipelines.running.beam_jobs import BeamJobs, available_cpus, without_misleading_warnings
from pipelines.running.events import Events, complainer
from pipelines.running.failures import is_full, sentence
from pipelines.running.heart import Heart
from pipelines.running.probe import check_machines
from pipelines.running.record import begun, close_killed, earlier_runs
from pipelines.running.stops import Stopped, StopSignals
from pipelines.stage import Context, Result, RunView
from pipelines.store.artifacts import Artifact
from pipelines.store.files import write_json
from pipelines.store.leases import Lease, LockHeldError
from pipelines.store.runs_dir import EVENTS, ROOM, STORE, RunsDir
from pipelines.store.shared import ARTIFACTS, Shared
from pipelines.store.sources import SourceError
from pipelines.telling.metrics import publish
from pipelines.telling.notices import event_of, send
from pipelines.telling.options import Event

DONE, STAGE_FAILED, SPEC_WRONG, GATE_FAILED, LOCKED = 0, 1, 2, 3, 75
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h, for schedulers that retry."""
ROOM_BYTES = 256 * 1024
"""Kept free in a run's folder, so that the run can say how it ended even if the disk is full."""


class AccountingError(Exception):
    """A stage lost rows, or returned more than it took."""


@dataclass(frozen=True)
class Asked:
    """What whoever starts a run asks of it, which changes nothing in its results."""

    wait: float = 0.0
    """Seconds to wait for another run of the same pipeline to end."""
    scheduled_as: str | None = None
    """What the scheduler calls this run."""
    as_json: bool = False
    """Whether the console gets events as JSON."""


class Executor:
    """One run of one pipeline."""

    def __init__(
        self,
        spec: PipelineSpec,
        runs: RunsDir,
        selection: Selection,
        resume_command: str,
        asked: Asked = Asked(),
    ) -> None:
        self.spec, self.runs, self.selection = spec, runs, selection
        self.resume_command, self.asked = resume_command, asked
        self._complain = complainer(asked.as_json)
        self.home = runs.folder / spec.name
        self.store = runs.store()
        self.lease: Lease | None = None
        """The right to be the only run, if the runs are in an object store."""
        self.baseline: BaselineRun | None = None
        self.current = ""
        """The stage that is being run or looked at."""
        self.signals = StopSignals()
        self.late = False
        self.pools: Sequence[str] | None = None
        """Worker pools whose machines were found to be as this one."""

    def run(self) -> int:
        """Runs to the end and returns the exit code. Does not raise: whatever happens is told on
        the console, and in the run's record if anything can be written."""
        with self.signals:
            try:
                with self.runs.lock(self.spec.name, self._patience()) as self.lease:
                    return self._run_locked()
            except LockHeldError as held:
                self._complain(
                    f"another run of pipeline {self.spec.name!r} holds {held}; "
                    "try again when it has ended, or give this one another name:"
                )
                return LOCKED
            except Stopped as stop:
                self._complain(f"stopped by {stop}\nto continue from here: {self.resume_command}")
                return stop.exit_code
            except BaseException as error:
                self._complain(
                    f"the run cannot be recorded in {self.home}: {sentence(error)}\n"
                    + self._way_on(error)
                )
                return STAGE_FAILED
            finally:
                self.store.release()

    def _patience(self) -> Callable[[], None] | None:
        """What is called while another run holds the lock, about once a second: after the time that
        this one may wait, it raises `LockHeldError`."""
        if not self.asked.wait:
            return None
        end = time.monotonic() + self.asked.wait
        told: list[str] = []

        def wait() -> None:
            if not told:
                self._complain(
                    f"waiting for another run of pipeline {self.spec.name!r} to end, for up to "
                    f"{self.asked.wait:g} s"
                )
                told.append("")
            if time.monotonic() >= end:
                raise LockHeldError(str(self.home / ".lock"))

        return wait

    def _run_locked(self) -> int:
        # What was before is looked at now: another run may have ended while this one waited.
        self.runs.pull(self.spec.name)
        self.planner = Planner(
            self.spec, self.store, previous_parts(self.home), self.selection.force, holds=True
        )
        killed = close_killed(self.runs, self.home)
        self._begin()
        try:
            with Heart(self.events, self.spec.expected, self._late):
                code = self._run_told(killed)
                self._tell_how_it_ended()
            return code
        finally:
            self.events.close()
            self._send_last_words()

    def _send_last_words(self) -> None:
        """What was told after the run's record was sent."""
        try:
            self.runs.push(self.folder, whole=self.record.status not in ("complete", "gate failed"))
        except OSError as error:
            self._complain(f"what is in {self.folder} could not be sent: {sentence(error)}")

    def _run_told(self, killed: Sequence[tuple[Path, RunRecord]]) -> int:
        """Runs to the end, however it comes, and says on the console which it was.

        Args:
            killed: runs before this one that could not tell how they ended.
        """
        try:
            try:
                for folder, record in killed:
                    self._tell("failure", folder, record)
                return self._work()
            finally:
                self.signals.defer()
        except Stopped as stop:
            return self._stopped(stop)
        except BaseException as error:
            # A stage that calls sys.exit has failed too, whatever code it gives.
            # Beam turns what a step raises, the stop included, into errors of its own.
            if self.signals.received is not None:
                return self._stopped(Stopped(self.signals.received))
            return self._failed(error)

    def _late(self) -> None:
        """Called in another thread, when the run takes longer than expected."""
        assert self.spec.expected is not None
        self.late = True
        self._say(f"this run takes longer than expected: {self.spec.expected:g} s")
        self._tell("late", self.folder, self.record)

    def _tell_how_it_ended(self) -> None:
        """Notices and metrics. Nothing that goes wrong here changes how the run ended."""
        with suppress(Exception):  # no disk, no console: nobody is left to be told
            earlier = earlier_runs(self.home, self.record.run)
            self._tell(event_of(self.record, next(iter(earlier), None)), self.folder, self.record)
            if self.spec.metrics is not None:
                publish(self.spec.metrics, self.record, earlier, self.spec.base, self._say)

    def _tell(self, event: Event, folder: Path, record: RunRecord) -> None:
        ways = send(self.spec.notices, event, record, folder, self.spec.base, self._say)
        with suppress(OSError):
            for way in ways:
                self.events.record("told", of=event, by=way)

    def _say(self, message: str) -> None:
        """Says something that is no reason to fail if nobody can hear it."""
        with suppress(OSError):
            self.events.say(message)

    def _begin(self) -> None:
        """Makes the run's folder and record. Raises, and leaves nothing, if there is no room."""
        self.record = begun(self.spec, self.home, self.asked.scheduled_as)
        self.folder = self.home / self.record.run
        self.folder.mkdir(parents=True)
        try:
            (self.folder / ROOM).write_bytes(bytes(ROOM_BYTES))
            self.events = Events(self.folder / EVENTS, as_json=self.asked.as_json)
            self._save()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _work(self) -> int:
        """Everything that a run does; raises if it does not get to the end."""
        try:
            self.baseline = find_baseline(self.home, self.spec.baseline, self.store)
        except ValueError as error:
            if self.spec.baseline != LATEST:
                raise
            self.events.say(f"scores are compared with no other run: {error}")
        with without_misleading_warnings():
            for name in self.spec.stages:
                self.current = name
                self._stage(name)
                self.signals.check()
        self.current = self.events.stage = ""
        code = self._gates()
        self._close("complete" if code == DONE else "gate failed", code)
        for name, artifact in self.planner.artifacts.items():
            self.current = name
            self.spec.stages[name].stage.present(artifact, RunView(self.folder, self.record))
        self.current = ""
        self.signals.check()
        self.signals.defer()
        self._save()
        self.runs.push(self.folder)
        self.events.record("run " + self.record.status, exit_code=code)
        (self.folder / ROOM).unlink(missing_ok=True)
        # The last step that can fail: `latest` never points to a run that failed.
        if code == DONE and set(self.planner.artifacts) == set(self.spec.stages):
            self.store.check()
            if self.lease is not None:
                self.lease.check()
            self.runs.point_latest(self.folder)
        report = self.folder / "report" / "index.html"
        if report.exists():
            self.events.show(f"report: {report}")
        return code

    def _stopped(self, stop: Stopped) -> int:
        where = self.current or "the last step"
        self._give_up("stopped", stop.exit_code, None)
        self.events.show(f"\nstopped by {stop} in {where}")
        self._advise(None)
        return stop.exit_code

    def _failed(self, error: BaseException) -> int:
        trace = "".join(traceback.format_exception(error))
        where, what = self.current or "the last step", sentence(error)
        (self.folder / ROOM).unlink(missing_ok=True)
        with suppress(OSError):
            self.events.record("failed", stage=self.current, error=trace)
        if SourceError.__name__ in trace:
            # What is remembered of the files may be what is wrong.
            self.store.memory.forget_sources()
        self._give_up("failed", STAGE_FAILED, f"{where}: {what}")
        self.events.show(f"\n{where} failed: {what}")
        self._advise(error)
        return STAGE_FAILED

    def _give_up(self, status: Literal["stopped", "failed"], code: int, error: str | None) -> None:
        """Records how the run ended, as far as the disk allows."""
        self.events.stage = ""
        with suppress(OSError):
            (self.folder / ROOM).unlink(missing_ok=True)
        self._close(status, code, error)
        try:
            self._save()
            self.events.record("run " + status, exit_code=code, error=error)
        except OSError as problem:
            self.events.show(f"this run's record cannot be written: {sentence(problem)}")

    def _close(
        self,
        status: Literal["complete", "gate failed", "stopped", "failed"],
        code: int,
        error: str | None = None,
    ) -> None:
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        changes = {
            "status": status,
            "exit_code": code,
            "ended": ended,
            "error": error,
            "late": self.late,
        }
        self.record = self.record.model_copy(update=changes)

    def _advise(self, error: BaseException | None) -> None:
        if (self.folder / EVENTS).exists():
            self.events.show(f"details: {self.folder / EVENTS}")
        self.events.show(self._way_on(error))

    def _way_on(self, error: BaseException | None) -> str:
        """The command that goes on, and what must be done before."""
        lines = []
        if error is not None and is_full(error):
            lines.append(
                f"make room on the disk of {self.runs.folder}, for example with "
                f"python -m pipelines.collect {shlex.quote(str(self.runs))}"
            )
        return "\n".join([*lines, f"to continue from here: {self.resume_command}"])

    def _save(self) -> None:
        write_json(self.folder / RUN, self.record.to_json())
        self.runs.save(self.folder)

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
        lacking = lack_of_room(self.planner.bytes_to_read(spec), self.runs.folder)
        if lacking:
            self.events.say(lacking)
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

    def _probe(self) -> None:
        """Before the first stage that runs: whether the machines of worker pools can work. This run
        uses no others."""
        if self.pools is not None or not pools_of(self.spec.beam):
            return
        answering = self._beam().answering()
        beam = self._beam(answering)
        stages = self.spec.stages.values()
        targets = ["pipelines.running.beam_jobs:BeamJobs", *(stage.target for stage in stages)]
        libraries = dict.fromkeys(name for stage in stages for name in stage.stage.libraries)
        token = secrets.token_hex(12)
        with self.store.lease(token, lambda: None):  # collect removes only what a kill left
            folder = self.store.workspace("probe", token)
            names = check_machines(beam, beam.shared.path(folder), targets, [*libraries])
            self.store.discard("probe", token)
        self.pools = answering
        self.events.say(f"workers are on {', '.join(names)}")

    def _beam(self, pools: Sequence[str] | None = None) -> BeamJobs:
        jobs = BeamJobs(self.spec.beam, self.events, self.folder / "beam.log", pools)
        results = self.planner.artifacts.values()
        jobs.shared = Shared(
            self.store.root,
            self.store.objects if jobs.elsewhere else None,
            {artifact.name: artifact.attempt for artifact in results if artifact.attempt},
        )
        return jobs

    def _make(self, spec: StageSpec, decision: Decision) -> None:
        name, fingerprint = spec.name, decision.fingerprint
        parts = decision.parts
        assert fingerprint is not None and parts is not None
        if name in self.selection.force:
            self.store.discard(name, fingerprint)
        workspace = self.store.workspace(name, fingerprint)
        self.record = self.record.model_copy(update={"unfinished": workspace.name})
        self._save()
        output = workspace / "output"
        lineage = {
            stage: self.planner.artifacts[stage]
            for stage in self.spec.stages
            if stage in self.spec.ancestors(name)
        }

        def context() -> Context:
            return Context(
                stage=name,
                seed=self.spec.seed,
                base=self.spec.base,
                output=output,
                scratch=workspace / "scratch",
                threads=available_cpus(),
                progress=self.events,
                beam=self._beam(self.pools),
                lineage=lineage,
                outside={name: str(value) for name, value in parts["INPUT"].items()},
                keep=lambda: self.store.keep(name, fingerprint),
            )

        inputs = {
            key: tuple(self.planner.artifacts[stage] for stage in stages)
            for key, stages in spec.inputs.items()
        }
        began, started = datetime.now(UTC), time.monotonic()

        def attempt() -> Result:
            # Half-written files of a killed run; what can be used again of it is in scratch.
            if output.exists():
                shutil.rmtree(output)
            output.mkdir()
            with limited(spec.timeout, self.events.stream):
                self._probe()
                return spec.stage.run(context(), inputs)

        result, attempts = attempted(attempt, spec.retries, self._again)
        seconds = time.monotonic() - started
        check_accounts(name, result, output)
        self._check_outside(spec, decision)
        artifact = self.store.publish(
            name,
            fingerprint,
            kind=spec.stage.output,
            parts=parts,
            rows=result.rows,
            rejected=result.rejected,
            properties=result.properties,
            versions=library_versions(spec.stage.libraries),
            measured={**result.measured, "seconds": seconds},
            replacing=name in self.selection.force,
        )
        self.planner.artifacts[name] = artifact
        self.record = self.record.model_copy(update={"unfinished": None})
        moment = began.isoformat(timespec="milliseconds")
        self._remember(decision, "ran", artifact, seconds, decision.reason, attempts, moment)
        rejected = sum(result.rejected.values())
        aside = f", {rejected:,} rejected" if rejected else ""
        self.events.say(f"done in {seconds:.1f} s: {result.rows:,} rows{aside}")

    def _again(self, error: BaseException, attempt: int, wait: float) -> None:
        """Tells that a stage will be tried again, unless the run was told to stop."""
        self.signals.check()
        trace = "".join(traceback.format_exception(error))
        self.events.record("failed", stage=self.current, attempt=attempt, error=trace)
        retries = self.spec.stages[self.current].retries
        self.events.say(
            f"attempt {attempt} failed: {sentence(error)}; retry {attempt} of {retries} comes in "
            f"{wait:.0f} s"
        )

    def _check_outside(self, spec: StageSpec, decision: Decision) -> None:
        """Raises `SourceError` if a file outside the store is no longer what was planned with: the
        result may be made from either. Stages that read large files compare while they read."""
        assert decision.parts is not None
        planned, code = decision.parts["INPUT"], decision.parts["CODE"]
        now = self.planner.outside(spec, {name: str(value) for name, value in code.items()})
        for name, digest in now.items():
            if planned.get(name) != digest:
                raise SourceError(f"{name} has changed while {spec.name} was running")

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
        attempts: int = 1,
        started: str | None = None,
    ) -> None:
        assert artifact is not None
        measured = self.store.measured(artifact)
        stage = StageRecord(
            status=status,
            reason=reason,
            started=started,
            seconds=round(seconds, 3),
            attempts=attempts,
            made_in_seconds=measured.pop("seconds", None),
            measured=measured,
            kind=artifact.kind,
            rows=artifact.rows,
            rejected=artifact.rejected,
            digest=artifact.digest,
            fingerprint=artifact.fingerprint,
            artifact=f"{STORE}/{ARTIFACTS}/{artifact.name}",
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


def check_accounts(stage: str, result: Result, output: Path) -> None:
    """Checks for every stage that rows in = rows out + rejected, and that the rejects are there."""
    from pyarrow import parquet

    rejected = sum(result.rejected.values())
    files = output.glob("rejected/*.parquet")
    written = sum(parquet.read_metadata(path).num_rows for path in files) if rejected else 0
    if written != rejected:
        raise AccountingError(
            f"{stage} rejected {rejected} rows, but {written} of them are in rejected/"
        )
    if result.rows_in != result.rows + rejected:
        raise AccountingError(
            f"{stage} took {result.rows_in} rows but returned {result.rows} and rejected {rejected}"
        )
