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
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from model.parallel.layout import Layout
from model.parallel.team import Team
from pipelines.contracts.base import Contract, Json
from pipelines.stage import Context, Inputs, Meter, Progress, Result, Stage
from pipelines.store.artifacts import loose_artifact
from pipelines.store.shared import OWN

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
    job.told.unlink(missing_ok=True)
    description = own / "job.json"
    description.write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    command = [
        sys.executable, "-m", "model.parallel.launch", "--processes", str(layout.processes),
        "--logs", str(own / "logs"), "stages.together", str(description),
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, **threads},
    )  # fmt: skip
    said = Replay(context)
    try:
        for line in followed(job.told, lambda: launcher.poll() is None):
            said.take(line)
        printed, _ = launcher.communicate()
    finally:
        _end(launcher)
        said.close()
    if said.error is not None:
        raise ValueError(said.error)
    if launcher.returncode or said.done is None:
        raise ProcessDiedError(_how(printed, layout.processes))
    done = said.done
    return Result(rows_in=done.rows, rows=done.rows, properties=done.properties)


def _end(launcher: subprocess.Popen[str]) -> None:
    """Ends the launcher, and with it all processes."""
    if launcher.poll() is None:
        launcher.terminate()
        try:
            launcher.wait(30)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()


def _how(printed: str, processes: int) -> str:
    """Which process ended how."""
    try:
        told = json.loads(printed.strip().splitlines()[-1])
        code = int(told["code"])
    except (ValueError, IndexError, KeyError):
        return f"the {processes} processes that train together could not be started"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return f"process {told['rank']} of {processes} that train together {how}; see {told['log']}"


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

    def __init__(self, context: Context) -> None:
        self.context = context
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
        elif kind == "error":
            self.error = said["message"]
        elif kind == "done":
            self.done = Done.model_validate(said["result"])

    def close(self) -> None:
        """Ends the bar that is shown."""
        if self._meter is not None:
            self._meter.__exit__(None, None, None)
        self._meter = self._shown = None


class Relay:
    """What a process of a team says; only the leader's words are written."""

    def __init__(self, path: Path, leads: bool) -> None:
        self.path, self.leads = path, leads

    def write(self, kind: str, **facts: Any) -> None:
        if self.leads:
            line = json.dumps({"kind": kind, **facts}) + "\n"
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

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
    """One process of a team: `python -m stages.together JOB`."""
    from torch import distributed

    from model.parallel.launch import die_with_parent
    from pipelines.registry import load

    die_with_parent()
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # A process that has ended is noticed by the launcher; one that validates may take its time.
    distributed.init_process_group(timeout=timedelta(days=1))
    relay = Relay(job.told, distributed.get_rank() == 0)
    try:
        team = Team(job.layout)
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
            keep=lambda: relay.write("keep"),
        )
        inputs = {
            name: tuple(
                loose_artifact(Path(each.folder), each.rows, each.properties, each.digest)
                for each in given
            )
            for name, given in job.inputs.items()
        }
        result = stage.work(context, inputs, team)
        done = {"rows": result.rows, "properties": dict(result.properties)}
        relay.write("done", result=done)
        distributed.barrier()
    except ValueError as error:
        relay.write("error", message=str(error))
        raise
    finally:
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
