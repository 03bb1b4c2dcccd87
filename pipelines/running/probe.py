"""Before a run sends work to other machines: whether each of them can do it, in seconds.

A worker that lacks the store, has other code or other libraries would fail later, or worse, make
other bytes. So every machine first reads a token from the store and writes one, and compares what
it has with what the run has.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.planning.fingerprint import code_hashes, library_versions
from pipelines.store.files import write_text
from pipelines.store.shared import SharedPath

if TYPE_CHECKING:
    from pipelines.running.beam_jobs import BeamJobs

ROOM = 1 << 30
"""Bytes that a worker needs for temporary files."""
FLAGS = frozenset(
    {
        *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
        *("avx512_bf16", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
    }
)
"""Instructions by which libraries choose how they compute, and with that the last bits."""
ELEMENTS = 8
"""Per worker: Beam gives each worker some of many."""
SHOWN = 3


@dataclass(frozen=True)
class Equipment:
    """What results depend on of a machine."""

    libraries: Mapping[str, str]
    code: Mapping[str, str]
    """Hashes of modules, by file."""
    architecture: str
    instructions: frozenset[str]


def equipment(targets: Sequence[str], libraries: Sequence[str]) -> Equipment:
    """Of this machine. Raises `ValueError` if a module or a library is missing.

    Args:
        targets: the classes of stages, as "module:Name".
        libraries: distributions.
    """
    return Equipment(
        library_versions(libraries), code_hashes(targets), platform.machine(), instructions()
    )


def instructions() -> frozenset[str]:
    """Those of `FLAGS` that this processor has, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return FLAGS & set(next(lines, "").partition(":")[2].split())


def differences(ours: Equipment, theirs: Equipment) -> list[str]:
    """What is not the same on another machine, in words."""
    found = []
    for name, version in ours.libraries.items():
        if theirs.libraries[name] != version:
            found.append(f"it has {name} {theirs.libraries[name]}, and the run has {version}")
    other = [file for file, hashed in ours.code.items() if theirs.code.get(file) != hashed]
    if other:
        shown = ", ".join(other[:SHOWN]) + (" and more" if len(other) > SHOWN else "")
        found.append(f"it has other code in {shown}")
    if ours.architecture != theirs.architecture:
        found.append(f"it is {theirs.architecture}, and the run is on {ours.architecture}")
    elif ours.instructions != theirs.instructions:
        named = ", ".join(sorted(ours.instructions ^ theirs.instructions))
        found.append(
            f"its processor has other instructions ({named}), so networks could compute other "
            "last bits"
        )
    return found


@dataclass(frozen=True)
class Probe:
    """What a worker does: raises `ValueError` with all that is wrong on its machine, or leaves a
    file with the machine's name."""

    folder: SharedPath
    token: str
    targets: tuple[str, ...]
    libraries: tuple[str, ...]
    equipment: Equipment

    def __call__(self, number: int) -> None:
        host = socket.gethostname()
        wrong = list(self.problems())
        if wrong:
            raise ValueError(f"machine {host} cannot work for this run: " + "; ".join(wrong))
        # A pool is known by its process, which started this one.
        mine = self.folder / f"{number}.json"
        mine.here.parent.mkdir(parents=True, exist_ok=True)
        write_text(mine.here, json.dumps([host, os.getppid()]))
        mine.put()
        time.sleep(0.02)  # so that others get their part

    def problems(self) -> list[str]:
        wrong = []
        if self.folder.shared.objects is not None:
            self.folder.shared.objects.hurry()
        try:
            if Path(self.folder / "token").read_text(encoding="utf-8") != self.token:
                wrong.append(f"{self.folder.shown} is another folder there")
        except OSError as error:
            wrong.append(f"it does not see {self.folder.shown} ({error.strerror or error})")
        try:
            theirs = equipment(self.targets, self.libraries)
        except ValueError as error:
            wrong.append(str(error))
        else:
            wrong += differences(self.equipment, theirs)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free < ROOM:
            wrong.append(f"{tempfile.gettempdir()} has only {free >> 20} MB left")
        return wrong


def check_machines(
    beam: BeamJobs, folder: SharedPath, targets: Sequence[str], libraries: Sequence[str]
) -> list[str]:
    """Probes the machines of all pools that answer; returns the names of those that worked. Raises
    what `BeamJobs.run` raises, with the sentence of the machine that cannot work.

    Args:
        folder: a folder in the store, which can be written to.
    """
    import apache_beam

    from pipelines.running.workers import WorkerDiedError

    token = secrets.token_hex(16)
    write_text(folder.here / "token", token)
    (folder / "token").put()
    probe = Probe(folder, token, tuple(targets), tuple(libraries), equipment(targets, libraries))
    numbers = range(ELEMENTS * beam.workers)
    beam.run(
        lambda pipeline: (
            pipeline
            | "Numbers" >> apache_beam.Create(numbers, reshuffle=True)
            | "Probe" >> apache_beam.Map(probe)
        )
    )
    made = [json.loads(path.read_text(encoding="utf-8")) for path in folder.whole().glob("*.json")]
    if len({(host, pool) for host, pool in made}) < len(beam.pools):
        raise WorkerDiedError(
            f"of the worker pools {', '.join(beam.pools)}, not every one did its part of the probe"
        )
    return sorted({host for host, _ in made})
