"""Decides for every stage whether its result already exists, and if not, why not."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.contracts.base import Json, LaterVersionError
from pipelines.contracts.runs import Parts, RunRecord
from pipelines.planning.fingerprint import code_hashes, differences, flatten, library_versions
from pipelines.reading.spec import PipelineSpec, StageSpec
from pipelines.store.artifacts import Artifact, Store
from pipelines.store.digests import digest
from pipelines.store.sources import SourceError, SourceFile, local_path


class PlanError(Exception):
    """A stage cannot be planned: a source file or a library is missing."""


@dataclass(frozen=True)
class Decision:
    """What a run will do with a stage.

    `fingerprint` and `parts` are None while an input does not exist yet; the stage can still turn
    out to be cached, if the input becomes the same as before.
    """

    stage: str
    action: str
    """"cached" or "run"."""
    reason: str
    fingerprint: str | None = None
    parts: Parts | None = None
    artifact: Artifact | None = None


class Planner:
    """Plans stages one by one, in order, so that results made just before are known."""

    def __init__(
        self,
        spec: PipelineSpec,
        store: Store,
        previous: Mapping[str, Parts],
        forced: Collection[str] = (),
        holds: bool = False,
    ) -> None:
        """
        Args:
            previous: the parts of each stage in the last run, to say what has changed.
            forced: stages to run even if their results exist.
            holds: whether what is planned is used, so that it must not be collected.
        """
        self.holds = holds
        self.spec, self.store, self.previous, self.forced = spec, store, previous, forced
        self.artifacts: dict[str, Artifact] = {}

    def decide(self, name: str) -> Decision:
        spec = self.spec.stages[name]
        waiting = [stage for stage in self._depends_on(spec) if stage not in self.artifacts]
        if waiting:
            return Decision(name, "run", f"INPUT {', '.join(waiting)} will run first")
        parts = self.parts(spec)
        fingerprint = digest({"stage": spec.target, "version": spec.stage.version, **parts})
        if self.holds:
            self.store.hold(fingerprint)
        try:
            artifact = self.store.find(name, fingerprint)
        except LaterVersionError as error:
            raise PlanError(str(error)) from error
        if name in self.forced:
            return Decision(name, "run", "FORCED by --force", fingerprint, parts)
        if artifact is not None:
            self.artifacts[name] = artifact
            return Decision(name, "cached", "unchanged", fingerprint, parts, artifact)
        return Decision(name, "run", self._why(name, fingerprint, parts), fingerprint, parts)

    def _why(self, name: str, fingerprint: str, parts: Parts) -> str:
        damage = self.store.damage(name, fingerprint)
        if damage is not None:
            return f"DAMAGED: in {self.store.path(name, fingerprint).name}, {damage}"
        if name not in self.previous:
            return "NEW: it has not run before"
        changes = differences(self.previous[name], parts)
        if not changes:
            return "MISSING: its result is not in the store"
        return "; ".join(changes[:4]) + (
            f"; and {len(changes) - 4} more" if len(changes) > 4 else ""
        )

    def _depends_on(self, spec: StageSpec) -> list[str]:
        if not spec.stage.whole_lineage:
            return list(dict.fromkeys(spec.upstream))
        ancestors = self.spec.ancestors(spec.name)
        return [name for name in self.spec.stages if name in ancestors]

    def parts(self, spec: StageSpec) -> Parts:
        """Everything that the stage's result depends on. Its inputs must exist."""
        stage = spec.stage
        config = flatten(stage.config.model_dump(mode="json"))
        config.pop("", None)
        if stage.seeded:
            config["seed"] = self.spec.seed
        try:
            code = code_hashes([spec.target, *stage.plugins()])
            inputs: dict[str, Json] = dict(self.outside(spec, code))
            libraries = library_versions(stage.libraries)
        except (ValueError, OSError, SourceError) as error:
            raise PlanError(f"{spec.place}: {spec.name}: {error}") from error
        for name, stages in spec.inputs.items():
            for index, upstream in enumerate(stages):
                key = f"{name}[{index}]" if stage.inputs[name].many else name
                inputs[f"{key} (from {upstream})"] = self.artifacts[upstream].digest
        if stage.whole_lineage:
            for upstream in self._depends_on(spec):
                inputs[f"lineage (from {upstream})"] = self.artifacts[upstream].digest
        config["stage.version"] = stage.version
        return {"CONFIG": config, "INPUT": inputs, "CODE": dict(code), "LIBRARY": dict(libraries)}

    def outside(self, spec: StageSpec, code: Mapping[str, str]) -> dict[str, str]:
        """Name and digest of every file outside the store that a stage depends on, now."""
        files = spec.stage.outside(self.spec.base)
        return dict(self.store.memory.digests(files, digest(code)))

    def bytes_to_read(self, spec: StageSpec) -> int:
        """The size of the files on this machine that a stage reads, but for those in rows."""
        total = 0
        for _, file in spec.stage.outside(self.spec.base):
            path = local_path(file.url) if isinstance(file, SourceFile) else None
            total += path.stat().st_size if path is not None and path.exists() else 0
        return total


def lack_of_room(needed: int, folder: Path) -> str | None:
    """A sentence if a disk has less room than the sources that are read: their rows are written
    about as large as they are. None if it has enough."""
    free = None
    for path in (folder, *folder.absolute().parents):
        # The folder may not be there yet, or have a name that cannot be; whoever writes says so.
        with suppress(OSError):
            free = shutil.disk_usage(path).free
            break
    if free is None or needed <= free:
        return None
    has, free_there = f"{needed / 1e6:,.0f} MB", f"{free / 1e6:,.0f} MB"
    return (
        f"the sources have {has}, and the disk of {folder} has {free_there} free; that may not be "
        "enough"
    )


def previous_parts(runs: Path) -> dict[str, Parts]:
    """The parts of every stage, from the latest of the run records below `runs` that has them."""
    latest: dict[str, Parts] = {}
    # Runs are named by when they started; `latest` is a link to one of them.
    try:
        records = [path for path in runs.glob("*/run.json") if not path.parent.is_symlink()]
    except OSError:
        return {}  # Whoever writes there will say what is wrong with this folder.
    for record in sorted(records, reverse=True)[:20]:
        try:
            stages = RunRecord.read(record.parent).stages
        except (OSError, ValueError):
            continue
        for name, facts in stages.items():
            if facts.parts and facts.digest:
                latest.setdefault(name, facts.parts)
    return latest
