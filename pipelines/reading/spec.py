"""The pipeline file as typed, frozen objects, validated completely before any work starts."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines import registry
from pipelines.contracts.addresses import pools_of
from pipelines.contracts.base import Json
from pipelines.judging.baseline import LATEST
from pipelines.judging.gates import Gate, parse_gate
from pipelines.reading import document
from pipelines.reading.document import Node, Place, Problem, SpecError
from pipelines.reading.durations import seconds_of
from pipelines.reading.options import problems_of
from pipelines.reading.order import find_cycle, topological_order
from pipelines.registry import did_you_mean
from pipelines.stage import Stage
from pipelines.telling.options import MetricsConfig, NoticeConfig

TOP_LEVEL = frozenset(
    {
        *("name", "seed", "beam", "variables", "include", "stages", "gates", "baseline"),
        *("retries", "timeout", "expected", "notify", "metrics"),
    }
)
Options = TypeVar("Options", bound=BaseModel)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Of pipelines and stages, which are names of folders too."""
LARGEST_SEED = 2**63 - 1
OF_ENGINE = ("use", "retries", "timeout")
"""Keys of a stage that are no options of its class."""
RESERVED = TOP_LEVEL | {*OF_ENGINE}
MOST_RETRIES = 100


@dataclass(frozen=True)
class StageSpec:
    """One stage as the user wrote it, with its options validated."""

    name: str
    target: str
    stage: Stage
    inputs: Mapping[str, tuple[str, ...]]
    """Input name to names of the stages it comes from."""
    place: Place
    retries: int = 0
    """How often it is tried again after a failure that may pass."""
    timeout: float | None = None
    """Seconds that an attempt may take."""

    @property
    def upstream(self) -> tuple[str, ...]:
        return tuple(name for names in self.inputs.values() for name in names)


@dataclass(frozen=True)
class PipelineSpec:
    """A whole job. `stages` are in an order in which they can run."""

    name: str
    seed: int
    beam: Mapping[str, Json]
    stages: Mapping[str, StageSpec]
    gates: tuple[Gate, ...]
    baseline: str
    """The run that scores are compared with, as the user wrote it."""
    path: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """As text."""
    expected: float | None = None
    """Seconds after which a run is late."""
    notices: tuple[NoticeConfig, ...] = ()
    metrics: MetricsConfig | None = None

    @property
    def base(self) -> Path:
        """The file's folder, where relative paths in options start: absolute, because workers may
        stand somewhere else."""
        return self.path.absolute().parent

    def ancestors(self, name: str) -> set[str]:
        ancestors: set[str] = set()
        pending = list(self.stages[name].upstream)
        while pending:
            current = pending.pop()
            if current not in ancestors:
                ancestors.add(current)
                pending.extend(self.stages[current].upstream)
        return ancestors

    def descendants(self, name: str) -> set[str]:
        return {other for other in self.stages if name in self.ancestors(other)}


def load_pipeline(path: Path, settings: Sequence[str] = ()) -> PipelineSpec:
    """Reads and validates a pipeline file. Raises `SpecError` with everything that is wrong."""
    root = document.read(path)
    if not isinstance(root.value, dict):
        raise SpecError([Problem(root.place, "must be a mapping with name: and stages:")])
    root = document.resolve_includes(root, path.parent, (path.resolve(),))
    for setting in settings:
        document.override(root, setting, TOP_LEVEL)
    return _Validation(document.substitute(root), path).pipeline()


class _Validation:
    """Collects every problem of one file, then returns the pipeline or raises."""

    def __init__(self, root: Node, path: Path) -> None:
        self.root, self.path = root, path
        self.problems: list[Problem] = []

    def problem(self, place: Place, message: str) -> None:
        self.problems.append(Problem(place, message))

    def pipeline(self) -> PipelineSpec:
        for key, node in self.root.value.items():
            if key not in TOP_LEVEL:
                self.problem(node.place, f"unknown key {key!r}{did_you_mean(key, TOP_LEVEL)}")
        name = self.scalar("name", str, "a name of letters, digits, - and _", self.path.stem)
        if isinstance(name, str) and (not NAME.fullmatch(name) or name in ("store", "site")):
            self.problem(
                self.root.at(("name",)),
                f"name: {name!r} must be up to 100 letters, digits, - and _, and not 'store' or "
                "'site'",
            )
        seed = self.scalar("seed", int, "a whole number", 0)
        if not 0 <= seed <= LARGEST_SEED:
            self.problem(self.root.at(("seed",)), f"seed: must be from 0 to {LARGEST_SEED}")
        beam = self.mapping("beam")
        self.beam_options(beam)
        try:
            pools = pools_of(beam)
        except ValueError as error:
            place = self.root.at(("beam", "environment_config"))
            self.problem(place, f"beam.environment_config: {error}")
        else:
            if pools and beam.get("direct_running_mode"):
                self.problem(
                    self.root.at(("beam", "direct_running_mode")),
                    "beam.direct_running_mode: says where workers on this machine are; leave it "
                    "out with environment_type: EXTERNAL",
                )
        workers = beam.get("direct_num_workers", 1)
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
            self.problem(
                self.root.at(("beam", "direct_num_workers")),
                f"beam.direct_num_workers: must be a whole number, not {workers!r}",
            )
        retries, self.timeout = self.effort(self.root, "")
        self.retries = retries or 0
        stages = self.stages()
        gates = self.gates()
        baseline = self.scalar("baseline", str, "latest, none or the name of a run", LATEST)
        expected = self.root.value.get("expected")
        seconds = None if expected is None else self.duration(expected, "expected")
        notices = self.notices()
        said = self.root.value.get("metrics")
        metrics = None if said is None else self.options("metrics", said, MetricsConfig)
        if self.problems:
            raise SpecError(self.problems)
        order = topological_order({stage.name: stage.upstream for stage in stages.values()})
        ordered = {stage: stages[stage] for stage in order}
        variables = {str(key): _text(value) for key, value in self.mapping("variables").items()}
        return PipelineSpec(
            name,
            seed,
            beam,
            ordered,
            gates,
            baseline,
            self.path,
            variables,
            seconds,
            notices,
            metrics,
        )

    def notices(self) -> tuple[NoticeConfig, ...]:
        node = self.root.value.get("notify")
        if node is None or node.value is None:
            return ()
        listed = node.value if isinstance(node.value, list) else [node]
        made = (self.options("notify", item, NoticeConfig) for item in listed)
        return tuple(notice for notice in made if notice is not None)

    def options(self, name: str, node: Node, kind: type[Options]) -> Options | None:
        """Options of the engine's own; None if they are wrong."""
        try:
            return kind.model_validate(node.plain())
        except ValidationError as error:
            self.wrong(name, node, error, [*kind.model_fields])
            return None

    def wrong(self, name: str, body: Node, error: ValidationError, known: Sequence[str]) -> None:
        for path, message in problems_of(error, known):
            where = ".".join([name, *(str(part) for part in path)])
            self.problem(body.at(path), f"{where}: {message}")

    def duration(self, node: Node, where: str) -> float | None:
        try:
            return seconds_of(node.plain())
        except ValueError as error:
            self.problem(node.place, f"{where}: {error}")
            return None

    def beam_options(self, beam: Mapping[str, Json]) -> None:
        """Beam itself drops options that it does not know. A runner of another package can have
        options of its own."""
        if "." in str(beam.get("runner", "")):
            return
        known = beam_options()
        for key in beam:
            if key not in known:
                near = did_you_mean(key, known)
                self.problem(self.root.at(("beam", key)), f"beam.{key}: unknown option{near}")

    def scalar(self, key: str, kind: type, wanted: str, default: Any) -> Any:
        node = self.root.value.get(key)
        if node is None:
            return default
        if not isinstance(node.value, kind) or isinstance(node.value, bool):
            self.problem(node.place, f"{key}: must be {wanted}, not {node.plain()!r}")
            return default
        return node.value

    def mapping(self, key: str) -> dict[str, Json]:
        node = self.root.value.get(key)
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            self.problem(node.place, f"{key}: must be a mapping")
            return {}
        plain: dict[str, Json] = node.plain()
        return plain

    def stages(self) -> dict[str, StageSpec]:
        node = self.root.value.get("stages")
        if node is None or not isinstance(node.value, dict) or not node.value:
            place = node.place if node is not None else self.root.place
            self.problem(place, "stages: must be a mapping of at least one stage")
            return {}
        classes = {name: self.stage_class(str(name), body) for name, body in node.value.items()}
        kinds = {name: entry[1].output for name, entry in classes.items() if entry}
        specs = {}
        for name, body in node.value.items():
            known = classes[name]
            if known is not None:
                spec = self.stage(str(name), body, *known, kinds, [str(n) for n in node.value])
                if spec is not None:
                    specs[str(name)] = spec
        edges = {name: tuple(u for u in s.upstream if u in specs) for name, s in specs.items()}
        cycle = find_cycle(edges)
        if cycle:
            arrow = " → ".join([*cycle, cycle[0]])
            self.problem(specs[cycle[0]].place, f"stages depend on each other in a cycle: {arrow}")
        elif not self.problems:
            self.check_tasks(specs)
        return specs

    def check_tasks(self, specs: Mapping[str, StageSpec]) -> None:
        """Checks options that name tasks, as far as options upstream say which tasks there are."""
        for spec in specs.values():
            pending, tasks = list(spec.upstream), set[str]()
            seen: set[str] = set()
            while pending:
                name = pending.pop()
                if name not in seen:
                    seen.add(name)
                    made = specs[name].stage.tasks()
                    if made is None:
                        break
                    tasks |= set(made)
                    pending += specs[name].upstream
            else:
                try:
                    spec.stage.check_tasks(sorted(tasks))
                except ValueError as error:
                    self.problem(spec.place, f"{spec.name}: {error}")

    def stage_class(self, name: str, body: Node) -> tuple[str, type[Stage]] | None:
        if not NAME.fullmatch(name) or name in RESERVED:
            self.problem(body.place, f"{name!r} cannot be the name of a stage")
            return None
        if body.value is None:
            body.value = {}
        if not isinstance(body.value, dict):
            self.problem(body.place, f"{name}: must be a mapping of options")
            return None
        use = body.value.get("use")
        wanted = use.plain() if use is not None else name
        place = use.place if use is not None else body.place
        if not isinstance(wanted, str):
            self.problem(place, f"{name}.use: must be a name or package.module:Class")
            return None
        try:
            target = registry.resolve("stages", wanted)
            cls = registry.load(target)
        except ValueError as error:
            self.problem(place, f"{name}: {error}")
            return None
        if not (isinstance(cls, type) and issubclass(cls, Stage)):
            self.problem(place, f"{name}: {target} is not a subclass of pipelines.stage.Stage")
            return None
        lacking = ", ".join(sorted(cls.__abstractmethods__))
        if lacking or not hasattr(cls, "output"):
            self.problem(place, f"{name}: {target} does not define {lacking or 'output'}")
            return None
        return target, cls

    def stage(
        self,
        name: str,
        body: Node,
        target: str,
        cls: type[Stage],
        kinds: Mapping[str, str],
        stage_names: Sequence[str],
    ) -> StageSpec | None:
        options = {key: node for key, node in body.value.items() if key not in OF_ENGINE}
        retries, timeout = self.effort(body, f"{name}.")
        inputs: dict[str, tuple[str, ...]] = {}
        for key, wanted in cls.inputs.items():
            node = options.pop(key, None)
            if node is None or node.value is None:
                if not wanted.optional:
                    fitting = [stage for stage, kind in kinds.items() if kind == wanted.kind]
                    offer = f"; stages of that kind: {', '.join(fitting)}" if fitting else ""
                    self.problem(
                        body.place,
                        f"{name}: needs the input {key}: (it takes {wanted.kind}{offer})",
                    )
                inputs[key] = ()
                continue
            inputs[key] = self.input(name, key, node, wanted.kind, wanted.many, kinds, stage_names)
        config = self.config(name, body, cls, {k: node.plain() for k, node in options.items()})
        if not config:
            return None
        instance = cls(config)
        try:
            instance.check({key for key, names in inputs.items() if names})
        except ValueError as error:
            self.problem(body.place, f"{name}: {error}")
        return StageSpec(
            name,
            target,
            instance,
            inputs,
            body.place,
            self.retries if retries is None else retries,
            self.timeout if timeout is None else timeout,
        )

    def effort(self, body: Node, where: str) -> tuple[int | None, float | None]:
        """`retries:` and `timeout:` of a stage, or of all stages; None where they are not given."""
        retries, timeout = body.value.get("retries"), body.value.get("timeout")
        number = seconds = None
        if retries is not None:
            number = retries.value
            if type(number) is not int or not 0 <= number <= MOST_RETRIES:
                shown = retries.plain()
                what = f"must be a whole number from 0 to {MOST_RETRIES}, not {shown!r}"
                self.problem(retries.place, f"{where}retries: {what}")
                number = None
        if timeout is not None:
            seconds = self.duration(timeout, f"{where}timeout")
        return number, seconds

    def input(
        self,
        stage: str,
        key: str,
        node: Node,
        kind: str,
        many: bool,
        kinds: Mapping[str, str],
        stage_names: Sequence[str],
    ) -> tuple[str, ...]:
        listed = node.plain() if isinstance(node.value, list) else [node.plain()]
        if len(listed) != 1 and not many:
            self.problem(node.place, f"{stage}.{key}: takes one stage, not {len(listed)}")
        if not listed:
            self.problem(node.place, f"{stage}.{key}: names no stage")
        for name in listed:
            if name not in stage_names:
                near = did_you_mean(name, stage_names)
                self.problem(node.place, f"{stage}.{key}: there is no stage {name!r}{near}")
            elif name in kinds and kinds[name] != kind:
                fitting = [
                    other for other, output in kinds.items() if output == kind and other != stage
                ]
                offer = f"; {' or '.join(fitting)} would fit" if fitting else ""
                self.problem(
                    node.place,
                    f"{stage}.{key}: takes {kind}, but stage {name!r} makes {kinds[name]}{offer}",
                )
        return tuple(str(name) for name in listed)

    def config(self, name: str, body: Node, cls: type[Stage], options: dict[Any, Any]) -> Any:
        try:
            return cls.Config.model_validate(options)
        except ValidationError as error:
            self.wrong(name, body, error, [*cls.inputs, *cls.Config.model_fields, *OF_ENGINE])
            return None

    def gates(self) -> tuple[Gate, ...]:
        node = self.root.value.get("gates")
        if node is None or node.value is None:
            return ()
        if not isinstance(node.value, list):
            self.problem(node.place, "gates: must be a list, as in - bleu >= 10")
            return ()
        parsed = []
        for item in node.value:
            try:
                parsed.append(parse_gate(item.plain()))
            except ValueError as error:
                self.problem(item.place, f"gates: {error}")
        return tuple(parsed)


def _text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)


@cache
def beam_options() -> frozenset[str]:
    """The names of all options of Beam, which takes too long to import for a plan. The file is
    for the pinned version; a test compares it with Beam's own."""
    path = Path(__file__).parent / "beam_options.txt"
    return frozenset(path.read_text(encoding="utf-8").split())


def nearest_stage(name: str, spec: PipelineSpec) -> str:
    """The suggestion for a stage name given on the command line."""
    near = difflib.get_close_matches(name, list(spec.stages), n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; it has {', '.join(spec.stages)}"
