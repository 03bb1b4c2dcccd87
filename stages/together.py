"""A stage whose work several processes of this machine share.

The processes of a team run the same code as one alone does. The first of them leads: it writes the
output and says how it goes; what it says goes through a file to the process of the run, which shows
it. A process that dies ends the work of all; the stage's `retries:` let it go on from its last
checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from model.parallel.layout import Layout
from model.parallel.rank import started_here
from model.parallel.team import Team
from pipelines.contracts.base import Contract, Json
from pipelines.registry import load
from pipelines.running.failures import sentence
from pipelines.stage import Context, Inputs, Meter, Progress, Result, Stage
from pipelines.store.artifacts import loose_artifact
from pipelines.store.files import write_text
from pipelines.store.shared import OWN

LAUNCHER = "launcher.log"
LOOKS = 0.3
"""Seconds between two looks at what the team has said."""


class ProcessDiedError(ConnectionError):
    """A process of a team ended in the middle of its work."""


class Given(Contract):
    """An input of the stage."""

    folder: str
    rows: int
    properties: dict[str, Json]
    digest: str


class Job(Contract):
    """What each process of a team must know."""

    stage: str
    """`module:Class`."""
    options: dict[str, Json]
    layout: Layout
    inputs: dict[str, tuple[Given, ...]]
    seed: int
    base: str
    output: str
    scratch: str
    threads: int
    """Of each process."""

    @property
    def told(self) -> Path:
        """The file of what the leader says."""
        return Path(self.scratch) / OWN / "told.jsonl"

    @property
    def kept(self) -> Path:
        """The file with the number of times that the run has kept what is in scratch."""
        return Path(self.scratch) / OWN / "kept"


class Done(Contract):
    """What came of it."""

    rows: int
    properties: dict[str, Json]


def options_of(config: Any) -> dict[str, Json]:
    """The options of a stage in a form that its class reads; of a plug-in also its class."""
    options: dict[str, Json] = config.model_dump(mode="json")
    for name in type(config).model_fields:
        value = getattr(config, name)
        kind = type(value)
        chosen = options.get(name)
        if isinstance(chosen, dict) and hasattr(kind, "network"):
            options[name] = {"use": f"{kind.__module__}:{kind.__qualname__}", **chosen}
    return options


def together(stage: Stage[Any], layout: Layout, context: Context, inputs: Inputs) -> Result:
    """Runs a stage's work in several processes. Raises `ProcessDiedError`, and `ValueError` with
    what the work itself says."""
    import torch

    found = torch.cuda.device_count()
    if 0 < found < layout.processes:
        raise ValueError(
            f"parallel: {layout.processes} processes need as many GPUs; this machine has {found}"
        )
    kind = type(stage)
    job = Job(
        stage=f"{kind.__module__}:{kind.__qualname__}",
        options=options_of(stage.config),
        layout=layout,
        inputs={
            name: tuple(
                Given(
                    folder=str(artifact.folder),
                    rows=artifact.rows,
                    properties=artifact.properties,
                    digest=artifact.digest,
                )
                for artifact in artifacts
            )
            for name, artifacts in inputs.items()
        },
        seed=context.seed,
        base=str(context.base),
        output=str(context.output),
        scratch=str(context.scratch),
        threads=max(1, context.threads // layout.processes),
    )
    own = Path(job.told).parent
    own.mkdir(parents=True, exist_ok=True)
    for path in (job.told, job.kept):
        path.unlink(missing_ok=True)
    description = own / "job.json"
    description.write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    logs = own / "logs"
    logs.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "model.parallel.rank", "model.parallel.launch",
        "--processes", str(layout.processes), "--logs", str(logs), "stages.together",
        str(description),
    ]  # fmt: skip
    environment = {
        **os.environ,
        **started_here(),
        "OMP_NUM_THREADS": str(job.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONSAFEPATH": "1",  # the current folder stays where it is in the path
    }
    said = Replay(context, job.kept)
    with (logs / LAUNCHER).open("wb") as log:
        launcher = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        for line in followed(job.told, lambda: launcher.poll() is None):
            said.take(line)
        printed, _ = launcher.communicate()
    finally:
        _end(launcher)
        said.close()
    if launcher.returncode == 0 and said.done is not None:
        done = said.done
        return Result(rows_in=done.rows, rows=done.rows, properties=done.properties)
    how = how_it_ended(printed, launcher.returncode, layout.processes, logs)
    if said.error is not None and not how.killed:
        raise ValueError(said.error)
    raise ProcessDiedError(how.told)


def _end(launcher: subprocess.Popen[str]) -> None:
    """Ends the launcher, and with it all processes."""
    if launcher.poll() is None:
        launcher.terminate()
        try:
            launcher.wait(30)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()


@dataclass(frozen=True)
class Ending:
    """How the processes of a team ended before their work was done."""

    killed: bool
    told: str


def how_it_ended(printed: str, code: int, processes: int, logs: Path) -> Ending:
    """What the launcher said, or what can be said of the launcher.

    Args:
        code: the launcher's exit code.
    """
    who, log = f"what starts the {processes} processes that train together", logs / LAUNCHER
    with suppress(ValueError, IndexError, KeyError, TypeError):
        told = json.loads(printed.strip().splitlines()[-1])
        code, log = int(told["code"]), Path(told["log"])
        who = f"process {int(told['rank'])} of {processes} that train together"
    how = f"ended with {code}"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"was killed by {names.get(-code, f'signal {-code}')}"
    return Ending(code < 0, f"{who} {how}; see {log}")


def followed(path: Path, lives: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of a file that is being written, until its writer has ended."""
    place, rest = 0, b""
    while True:
        last = not lives()
        if path.exists():
            with path.open("rb") as file:
                file.seek(place)
                rest += file.read()
                place = file.tell()
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield json.loads(line)
        if last:
            return
        time.sleep(LOOKS)


class Replay:
    """Shows what the leader of a team says."""

    def __init__(self, context: Context, kept: Path) -> None:
        self.context, self.kept = context, kept
        self.error: str | None = None
        self.done: Done | None = None
        self._meter: Any = None
        self._shown: Meter | None = None

    def take(self, said: Mapping[str, Any]) -> None:
        kind = said["kind"]
        if kind == "say":
            self.context.progress.say(said["message"], **said["facts"])
        elif kind == "meter":
            self.close()
            self._meter = self.context.progress.meter(said["label"], said["total"], said["unit"])
            self._shown = self._meter.__enter__()
        elif kind == "reach" and self._shown is not None:
            self._shown.reach(said["done"], said["note"])
        elif kind == "end":
            self.close()
        elif kind == "keep":
            self.context.keep()
            write_text(self.kept, str(said["number"]))
        elif kind == "error":
            self.error = self.error or said["message"]
        elif kind == "done":
            self.done = Done.model_validate(said["result"])

    def close(self) -> None:
        """Ends the bar that is shown."""
        if self._meter is not None:
            self._meter.__exit__(None, None, None)
        self._meter = self._shown = None


class Relay:
    """What a process of a team says. Only the leader's words are written, and what went wrong."""

    def __init__(self, path: Path, kept: Path, leads: bool) -> None:
        self.path, self.kept, self.leads = path, kept, leads
        self._kept = 0

    def write(self, kind: str, **facts: Any) -> None:
        if self.leads or kind == "error":
            line = json.dumps({"kind": kind, **facts}) + "\n"
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def keep(self) -> None:
        """Has the run keep what is in scratch now, and waits until it has."""
        self._kept += 1
        self.write("keep", number=self._kept)
        while self.leads and not (self.kept.exists() and int(self.kept.read_text()) == self._kept):
            time.sleep(LOOKS / 3)

    @contextmanager
    def meter(self, label: str, total: float | None, unit: str) -> Iterator[Meter]:
        self.write("meter", label=label, total=total, unit=unit)
        yield RelayedMeter(self)
        self.write("end")

    def say(self, message: str, **facts: Any) -> None:
        self.write("say", message=message, facts=facts)


class RelayedMeter:
    """A bar that another process shows."""

    def __init__(self, relay: Relay) -> None:
        self._relay, self._last, self._done = relay, 0.0, 0.0

    def reach(self, done: float, note: str = "") -> None:
        self._done = done
        now = time.monotonic()
        if now - self._last > LOOKS:
            self._last = now
            self._relay.write("reach", done=done, note=note)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.reach(self._done + amount, note)


def main() -> int:
    """One process of a team: `python -m model.parallel.rank stages.together JOB`."""
    from torch import distributed

    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    relay = Relay(job.told, job.kept, os.environ["RANK"] == "0")
    try:
        # A process that ended is noticed by the launcher; one that validates may take its time.
        distributed.init_process_group(timeout=timedelta(days=1))
        result = _work(job, relay)
    except Exception as error:
        relay.write("error", message=sentence(error))
        raise  # without good-byes: the others may wait for this one
    relay.write("done", result={"rows": result.rows, "properties": dict(result.properties)})
    distributed.barrier()
    distributed.destroy_process_group()
    return 0


def _work(job: Job, relay: Relay) -> Result:
    kind = load(job.stage)
    stage = kind(kind.Config.model_validate(job.options))
    context = Context(
        stage=job.stage,
        seed=job.seed,
        base=Path(job.base),
        output=Path(job.output),
        scratch=Path(job.scratch),
        threads=job.threads,
        progress=cast(Progress, relay),
        beam=cast(Any, None),  # what is done on one machine needs no engine
        keep=relay.keep,
    )
    inputs = {
        name: tuple(
            loose_artifact(Path(each.folder), each.rows, each.properties, each.digest)
            for each in given
        )
        for name, given in job.inputs.items()
    }
    result: Result = stage.work(context, inputs, Team(job.layout))
    return result
