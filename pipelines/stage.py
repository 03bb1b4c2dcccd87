"""The contract between the engine and a stage.

A stage is a class with a `Config`, declared inputs and an output kind, and `run`. It has no global
state: what a run may use comes with the `Context`, and what a result depends on is in the config,
the inputs, the stage's own code and its libraries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
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

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


@dataclass(frozen=True)
class Input:
    """An input that a stage takes: the kind of artifact, and whether several may be given."""

    kind: str
    description: str
    many: bool = False
    optional: bool = False


class Meter(Protocol):
    """Progress of one piece of work, shown to a person as a bar."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Adds to what is done; the note (a loss, a rate) stands beside the bar."""

    def reach(self, done: float, note: str = "") -> None:
        """Sets what is done."""


class Progress(Protocol):
    """Where a stage says what it is doing."""

    def meter(self, label: str, total: float | None, unit: str) -> AbstractContextManager[Meter]:
        """A bar for `total` units of work."""

    def say(self, message: str, **facts: Any) -> None:
        """A line for the log, with facts for `events.jsonl`."""


@dataclass(frozen=True)
class Context:
    """What the engine gives a running stage. Nothing in here enters a fingerprint but the seed."""

    stage: str
    seed: int
    base: Path
    """The pipeline file's folder: relative paths in options start here."""
    output: Path
    """Empty folder to write the result into."""
    scratch: Path
    """Folder for unfinished work; kept after a kill, and found again by the resuming run."""
    threads: int
    progress: Progress
    beam: BeamJobs
    lineage: Mapping[str, Artifact] = field(default_factory=dict)
    """All artifacts upstream, by stage name."""


@dataclass(frozen=True)
class Result:
    """What a stage reports of its work. The engine checks rows_in = rows + rejected."""

    rows_in: int
    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rows kept aside, by reason; the rows themselves are in the output's `rejected/` shards."""
    properties: Properties = field(default_factory=dict)
    """Facts that stages downstream may need."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Seconds, and differences of floating point, by name. Kept beside the artifact, not in it: the
    same work gives the same bytes."""


@dataclass(frozen=True)
class RunView:
    """A run as `Stage.present` sees it: its record so far, and its folder."""

    folder: Path
    record: RunRecord


Inputs = Mapping[str, Sequence["Artifact"]]
"""Input name to artifacts; one where the input does not take many, none where left out."""


Options = TypeVar("Options", bound=BaseModel, default=Any)


class Stage(ABC, Generic[Options]):
    """Base class of every stage: `class Upper(Stage[UpperConfig])` has `UpperConfig` as options."""

    version: ClassVar[int] = 1
    """Raised when the meaning of the result changes though the code's hash may not tell."""
    Config: ClassVar[type[BaseModel]] = Config
    """The class of the options; taken from `Stage[...]` where it is not given."""
    inputs: ClassVar[Mapping[str, Input]] = {}
    output: ClassVar[str]
    """Kind of the artifact that `run` makes."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version can change the result."""
    seeded: ClassVar[bool] = False
    """Whether the pipeline's seed can change the result."""
    whole_lineage: ClassVar[bool] = False
    """Whether the result depends on all artifacts upstream, not on the direct inputs alone."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in cls.__dict__.get("__orig_bases__", ()):
            given = get_args(base)
            if get_origin(base) is Stage and isinstance(given[0], type):
                cls.Config = given[0]

    def __init__(self, config: Options) -> None:
        self.config = config

    def check(self, given: Collection[str]) -> None:  # most have nothing to say
        """Raises `ValueError` where the options do not go with the inputs that are given."""

    def outside(self, base: Path) -> Iterator[tuple[str, Outside]]:
        """Files outside the store that the result depends on: a name, and the file, whose digest
        the engine remembers, or a digest of the content.

        Raises `ValueError` with advice where one is missing.
        """
        return iter(())

    def plugins(self) -> Sequence[str]:
        """Further code that the result depends on, as "module:Name"; hashed, not imported."""
        return ()

    @abstractmethod
    def run(self, context: Context, inputs: Inputs) -> Result:
        """Writes the result into `context.output`."""

    def scores(self, artifact: Artifact) -> list[Score]:
        """The scores in a result of this stage; by default of those of the kind `scores`."""
        return artifact.scores()

    def compare(self, artifact: Artifact, baseline: Artifact) -> list[Comparison]:
        """Scores of this stage beside those that it made in another run."""
        return []

    def present(self, artifact: Artifact, view: RunView) -> None:  # most have none
        """Called at the end of every run, cached or not, to put results into the run's folder."""
