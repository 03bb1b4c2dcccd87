"""The records of runs: how a run is called, how it begins, and what is written of a killed one."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.contracts.runs import RUN, RUN_FORMAT, Machine, RunRecord, run_folders
from pipelines.reading.spec import PipelineSpec
from pipelines.running.beam_jobs import available_cpus
from pipelines.store.files import write_json
from pipelines.store.runs_dir import EVENTS, ROOM, RunsDir
from pipelines.version import VERSION

RUN_NAME = "%Y%m%dT%H%M%S-%f"
LONGEST = 250
"""Characters of the name that a scheduler gives."""
SCHEDULERS = (
    ("AIRFLOW_CTX_DAG_RUN_ID", "AIRFLOW_CTX_TRY_NUMBER"),
    ("ARGO_NODE_ID", ""),
    ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT"),
    ("INVOCATION_ID", ""),
)
"""Where Airflow, Argo Workflows, GitHub Actions and systemd put the name of a run, and the number
of the attempt at it."""


def name_of_run(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name under which the scheduler knows this run; None if there is no scheduler that says
    so. A further attempt has its number: `scheduled__2026-11-30, attempt 2`."""
    for variable, attempt in SCHEDULERS:
        name = environment.get(variable, "").strip()
        if name:
            number = environment.get(attempt, "1")
            again = f", attempt {number}" if number.isdecimal() and int(number) > 1 else ""
            return f"{name[:LONGEST]}{again}"
    return None


def begun(spec: PipelineSpec, home: Path, scheduled_as: str | None) -> RunRecord:
    """The record of a run that begins now.

    Args:
        home: the folder of all runs of the pipeline.
    """
    started = datetime.now(UTC)
    return RunRecord(
        format=RUN_FORMAT,
        pipeline=spec.name,
        run=_next_name(home, started),
        started=started.isoformat(timespec="seconds"),
        status="running",
        scheduled_as=scheduled_as,
        variables=dict(spec.variables),
        seed=spec.seed,
        machine=Machine(
            platform=platform.platform(),
            cpus=available_cpus(),
            python=platform.python_version(),
            version=VERSION,
        ),
    )


def _next_name(home: Path, started: datetime) -> str:
    """A run's name. Sorted by name, runs are in the order in which they started, even if the clock
    was set back in between."""
    names = [path.name for path in home.iterdir() if path.is_dir()]
    for name in sorted(names, reverse=True):
        try:
            before = datetime.strptime(name.rpartition("-")[0], RUN_NAME).replace(tzinfo=UTC)
        except ValueError:
            continue
        started = max(started, before + timedelta(microseconds=1))
        break
    return f"{started.strftime(RUN_NAME)}-{secrets.token_hex(2)}"


def close_killed(runs: RunsDir, home: Path) -> list[tuple[Path, RunRecord]]:
    """Writes down that runs were killed, if their records still say that they are running: whoever
    holds the lock is the only one that runs. Returns their folders and records."""
    killed = []
    folders = sorted(path.parent for path in home.glob("*/" + RUN))
    newest = [path for path in folders if not path.is_symlink()][-1:]
    # However a run ends, if it is not killed, it gives back its room.
    for folder in {*newest, *(path.parent for path in home.glob("*/" + ROOM))}:
        with suppress(OSError, ValueError):
            record = RunRecord.read(folder)
            if record.status == "running":
                events = folder / EVENTS  # another machine may have it
                last = (events if events.exists() else folder / RUN).stat().st_mtime
                changes = {
                    "status": "stopped",
                    "error": "killed, or the machine stopped",
                    "ended": datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"),
                }
                record = record.model_copy(update=changes)
                write_json(folder / RUN, record.to_json())
                runs.save(folder)
                killed.append((folder, record))
        with suppress(OSError):
            (folder / ROOM).unlink(missing_ok=True)
    return killed


def earlier_runs(home: Path, run: str) -> list[RunRecord]:
    """The records of a pipeline's runs before this one that can be read, the newest first."""
    records = []
    for folder in (each for each in run_folders(home) if each.name < run):
        with suppress(OSError, ValueError):
            records.append(RunRecord.read(folder))
    return records
