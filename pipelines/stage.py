"""The contract between the engine and a stage.

A stage is a class with a `Config`, declared inputs and an output kind, and `run`. It has no global
state: everything a run can use is in the `Context`, and everything a result depends on is in the
config, the inputs, the stage's own code and its libraries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

if TYPE_CHECKING:
    from pipelines.contracts.base import Properties
    from pipelines.contracts.runs import RunRecord
    from pipelines.contracts.scores import Comparison, Score
    from pipelines.running.beam_jobs import BeamJobs
    from pipelines.store.artifacts import Artifact
    from pipelines.store.sources import Outside


class Config(BaseModel):
    """Base of every stage's options: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class Input:
    """An input that a stage takes: the kind of artifact, and whether several are allowed."""

    kind: str
    description: str
    many: bool = False
    optional: bool = False


class Meter(Protocol):
    """Progress of one piece of work, shown to a person as a bar."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Adds to the amount done; the note (a loss, a rate) is shown beside the bar."""

    def reach(self, done: float, note: str = "") -> None:
        """Sets the amount done."""


class Progress(Protocol):
    """How a stage reports what it is doing."""

    def meter(self, label: str, total: float | None, unit: str) -> AbstractContextManager[Meter]:
        """A bar for `total` units of work."""

    def say(self, message: str, **facts: Any) -> None:
        """A line for the log, with facts for `events.jsonl`."""


@dataclass(frozen=True)
class Context:
    """What the engine gives a running stage. Only the seed of it is part of a fingerprint."""

    stage: str
    seed: int
    base: Path
    """The pipeline file's folder: relative paths in options start here."""
    output: Path
    """Empty folder to write the result into."""
    scratch: Path
    """Folder for unfinished work; it remains after a kill, and the run that resumes uses it."""
    threads: int
    progress: Progress
    beam: BeamJobs
    lineage: Mapping[str, Artifact] = field(default_factory=dict)
    """All artifacts upstream, by stage name."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Digests of the files of `Stage.outside`, by their names there, as the plan took them."""
    keep: Callable[[], None] = lambda: None
    """Makes what is in `scratch` now what a run on another machine finds there, if runs are in an
    object store."""


@dataclass(frozen=True)
class Result:
    """What a stage reports about its work. The engine checks rows_in = rows + rejected."""

    rows_in: int
    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rejected rows, counted by reason; the rows are in the output's `rejected/` shards."""
    properties: Properties = field(default_factory=dict)
    """Facts that stages downstream may need."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Seconds, and floating-point differences, by name. Stored beside the artifact, not in it, so
    that the same work gives the same bytes."""


@dataclass(frozen=True)
class RunView:
    """A run as `Stage.present` sees it: its record so far, and its folder."""

    folder: Path
    record: RunRecord


Inputs = Mapping[str, Sequence["Artifact"]]
"""Input name to artifacts: one if the input does not take several, none if it was left out."""


Options = TypeVar("Options", bound=BaseModel, default=Any)


class Stage(ABC, Generic[Options]):
    """Base class of every stage: `class Upper(Stage[UpperConfig])` has `UpperConfig` as options."""

    version: ClassVar[int] = 1
    """Increase it when the meaning of the result changes and the code's hash may not show it."""
    Config: ClassVar[type[BaseModel]] = Config
    """The class of the options; taken from `Stage[...]` if it is not given."""
    inputs: ClassVar[Mapping[str, Input]] = {}
    output: ClassVar[str]
    """Kind of the artifact that `run` makes."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version can change the result."""
    seeded: ClassVar[bool] = False
    """Whether the pipeline's seed can change the result."""
    whole_lineage: ClassVar[bool] = False
    """Whether the result depends on all artifacts upstream, not only on the direct inputs."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in cls.__dict__.get("__orig_bases__", ()):
            parameters = get_args(base)
            if get_origin(base) is Stage and isinstance(parameters[0], type):
                cls.Config = parameters[0]

    def __init__(self, config: Options) -> None:
        self.config = config

    def check(self, given: Collection[str]) -> None:  # most stages check nothing
        """Raises `ValueError` if the options do not fit the inputs that are given."""

    def tasks(self) -> Collection[str] | None:
        """The tasks of the rows that this stage makes, as its options name them; none if it takes
        its rows from stages upstream, None if the options do not say."""
        return None if self.output == "records" else ()

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Raises `ValueError` if options name tasks that are not among those upstream."""

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        """Files outside the store that the result depends on: a name, with either the file, whose
        digest the engine remembers, or a digest of the content.

        Raises `ValueError` with advice if one is missing.
        """
        return iter(())

    def plugins(self) -> Sequence[str]:
        """Further code that the result depends on, as "module:Name"; hashed, not imported."""
        return ()

    @abstractmethod
    def run(self, context: Context, inputs: Inputs) -> Result:
        """Writes the result into `context.output`."""

    def scores(self, artifact: Artifact) -> list[Score]:
        """The scores in a result of this stage; by default only the kind `scores` has any."""
        return artifact.scores()

    def compare(self, artifact: Artifact, baseline: Artifact) -> list[Comparison]:
        """Compares scores of this stage with those that it made in another run."""
        return []

    def present(self, artifact: Artifact, view: RunView) -> None:  # most stages present nothing
        """Called at the end of every run, cached or not, to put results into the run's folder."""
