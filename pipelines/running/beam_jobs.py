"""Beam, the engine of all data work. The only module that creates a `beam.Pipeline`.

Options under `beam:` in the pipeline file go to Beam's PipelineOptions as they are. Without any,
jobs run on FnApiRunner in this process: Beam's own default would first try to download a runner.
With `environment_type: EXTERNAL` its workers are in pools on other machines. Beam is imported when
the first job runs.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, Protocol, TypeVar

from pipelines.contracts.addresses import pools_of
from pipelines.contracts.base import parsed
from pipelines.store.files import write_json
from pipelines.store.shared import WHOLE_DISK, Shared, SharedPath

if TYPE_CHECKING:
    import apache_beam

    from pipelines.contracts.base import Json
    from pipelines.stage import Progress

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
FNAPI_LOGGER = "apache_beam.runners.portability.fn_api_runner.fn_runner"
MISLEADING = "apitools not found", "If direct_num_workers is not equal"
POLL_SECONDS, LISTING_SECONDS = 0.25, 5.0
"""Between two looks at what is done: in a folder, and in an object store."""


class Piece(Protocol):
    """A piece of work: a frozen dataclass, with a name that no other piece of its job has."""

    @property
    def name(self) -> str:
        """Names the files of its result and its progress."""


class Outcome(Protocol):
    """The outcome of a piece: a frozen dataclass with fields that JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class Ticks:
    """The progress of a piece: a file with one byte for each unit that is done. It has holes: its
    size is all that anybody looks at, and units can be the bytes of an input."""

    place: SharedPath

    def __call__(self, count: int) -> None:
        """Records that `count` more units are done."""
        if self.place.shared.objects is not None:
            return  # The run counts pieces that are done instead.
        with self.place.here.open("ab") as file:
            file.truncate(file.seek(0, os.SEEK_END) + count)


P = TypeVar("P", bound=Piece)
R = TypeVar("R", bound=Outcome)


def available_cpus() -> int:
    """Processors that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads(share: int) -> int:
    """Native threads that a worker can use on the machine where this is called.

    Args:
        share: how many workers there are on a machine.
    """
    return max(1, available_cpus() // max(1, share))


class BeamJobs:
    """Runs Beam jobs for a stage, with the pipeline's options."""

    def __init__(
        self,
        options: Mapping[str, Json],
        progress: Progress,
        log: Path | None = None,
        pools: Sequence[str] | None = None,
        shared: Shared = WHOLE_DISK,
    ) -> None:
        """
        Args:
            log: file for what Beam and its worker processes write to stderr while a job runs;
                they write a lot, and the console is for the progress bars.
            pools: of the worker pools in the options, those to use; all if it is not given.
            shared: how workers reach the store.
        """
        self.shared = shared
        self.options = {"runner": "FnApiRunner", **options}
        self.log = log
        self.progress = progress
        self.workers = int(str(self.options.get("direct_num_workers", 1)))
        self.pools = pools_of(self.options) if pools is None else tuple(pools)
        """Addresses of worker pools on other machines, if that is where the workers are."""
        self.share = self.workers
        """How many workers there are on a machine, which share its processors."""
        if self.pools:
            self.share = max(1, -(-self.workers // len(self.pools)))
            self.workers = self.share * len(self.pools)
        self.spreads = self.workers != 1 or self.options["runner"] != "FnApiRunner"
        """Whether there are other workers to share the pieces of a job with."""
        self.elsewhere = bool(self.pools) or self.options["runner"] != "FnApiRunner"
        """Whether workers can be on other machines."""

    def run(self, build: Callable[[apache_beam.Pipeline], object], local: bool = False) -> None:
        """Builds one job and runs it to its end. Raises what a step raised.

        Args:
            local: run in this process, whatever the options say; for jobs that take less time
                than starting a worker.
        """
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
        from threadpoolctl import threadpool_limits

        from pipelines.internals.apache_beam import frequent_sampling
        from pipelines.running import workers

        chosen: dict[str, Any] = {"runner": "FnApiRunner"} if local else dict(self.options)
        pools = [] if local else self.answering()
        if pools:
            chosen["direct_num_workers"] = self.share * len(pools)
        options = PipelineOptions.from_dictionary(chosen)
        # Steps are module-level functions and classes: nothing of __main__ needs to be sent.
        options.view_as(SetupOptions).save_main_session = False
        mode = chosen.get("direct_running_mode")
        single = local or mode or chosen["runner"] != "FnApiRunner"
        reuse = self.workers > 1 and not single and not pools
        # Workers that are threads share BLAS, whose own threads would add in a different order.
        limits = threadpool_limits(1, "blas") if mode == "multi_threading" else nullcontext()
        with self._environment(), limits, self._logged(), frequent_sampling():
            try:
                runner = workers.runner() if reuse else self._runner(pools)
                with beam.Pipeline(runner=runner, options=options) as pipeline:
                    build(pipeline)
            except BaseException:
                workers.dismiss()
                raise

    def answering(self) -> list[str]:
        """The pools that answer. Raises `WorkerDiedError` if there should be some and none does."""
        if not self.pools:
            return []
        from pipelines.running import pools
        from pipelines.running.workers import WorkerDiedError

        told = pools.answering(self.pools)
        for address, problem in told.items():
            if problem:
                self.progress.say(f"the worker pool {address} does not answer: {problem}")
        there = [address for address, problem in told.items() if not problem]
        if not there:
            raise WorkerDiedError(f"no worker pool answers: {', '.join(self.pools)}")
        return there

    def _runner(self, addresses: Sequence[str]) -> Any:
        if not addresses:
            return None
        from pipelines.running import pools

        return pools.runner(addresses, self.share)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Limits native threads in the processes that Beam starts: threads × workers = cores."""
        if self.workers <= 1 or self.pools:
            yield
            return
        before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        threads = str(worker_threads(self.share))
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Redirects file descriptor 2, which worker processes inherit, to the log."""
        if self.log is None:
            yield
            return
        console = os.dup(2)
        with self.log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(console, 2)
            os.close(console)

    def map(
        self,
        label: str,
        pieces: Iterable[P],
        function: Callable[Concatenate[P, Ticks, ...], R],
        outcome: type[R],
        scratch: Path,
        *,
        total: float,
        unit: str,
        transform: Callable[[Recorded[P, R]], Any] | None = None,
    ) -> list[R]:
        """Applies a function to every piece and returns the outcomes in the pieces' order.

        The outcome of each piece is saved in `scratch/label` when it is done, so a resumed run
        processes only the remaining pieces.

        Args:
            function: a module-level function or a callable object that can be pickled. It must
                write its files atomically, before it returns. What it reads and writes must be
                places (`pipelines.store.shared`). Calling the ticks moves the bar.
            outcome: the class of what the function returns. If it has `files`, names of places to
                sizes, other machines can read these files, and a resumed run does the piece again
                unless they are as they were.
            transform: makes the Beam transform that applies the function, if it is not a plain
                Map.
        """
        import apache_beam as beam

        folder = self.shared.path(scratch / label)
        folder.here.mkdir(parents=True, exist_ok=True)
        listed = list(pieces)
        saved = _outcomes(folder, listed, outcome)
        pending = [piece for piece, known in zip(listed, saved, strict=True) if known is None]
        if pending:
            old = set(folder.names())
            for piece in pending:
                for place in (_ticks_of(folder, piece.name), _outcome_of(folder, piece)):
                    if place.file in old:
                        place.remove()
            step = Recorded(function, folder)
            body = transform(step) if transform else beam.Map(step)
            with self.watch(label, folder, total, unit, len(listed)):
                self.run(
                    lambda pipeline: (
                        pipeline
                        | "Pieces" >> beam.Create(pending, reshuffle=self.spreads)
                        | label >> body
                    )
                )
            saved = _outcomes(folder, listed, outcome)
        outcomes = []
        for piece, result in zip(listed, saved, strict=True):
            if result is None:
                raise RuntimeError(
                    f"{label}: a worker returned no result for {piece.name}; do all workers share "
                    f"the folder {scratch}?"
                )
            outcomes.append(result)
        return outcomes

    def combine(
        self, elements: Sequence[Any], merge: Callable[[Iterable[Any]], Any], path: Path
    ) -> Any:
        """Merges all elements into one JSON value, writes it to `path` and returns it.

        Runs in this process: elements are sums of whole shards, too few to start workers for.

        Args:
            merge: associative and commutative, because Beam makes a CombineFn of it.
        """
        import apache_beam as beam

        self.run(
            lambda pipeline: (
                pipeline
                | "Elements" >> beam.Create(elements)
                | "Combine" >> beam.CombineGlobally(merge)
                | "Write" >> beam.Map(partial(write_json, path))
            ),
            local=True,
        )
        return json.loads(path.read_text(encoding="utf-8"))

    @contextmanager
    def watch(
        self, label: str, folder: SharedPath, total: float, unit: str, pieces: int
    ) -> Iterator[None]:
        """Moves a bar by the sizes of the tick files in a folder: one byte is one unit done. Where
        workers share no folder, by how many of the pieces have their file there."""
        folder.here.mkdir(parents=True, exist_ok=True)
        stop = threading.Event()
        objects = folder.shared.objects

        def measure() -> float:
            if objects is not None:
                done = [name for name in folder.names() if not name.endswith(".ticks")]
                return total * min(1.0, len(done) / max(1, pieces))
            sizes = 0.0
            for path in folder.here.glob("*.ticks"):
                try:
                    sizes += path.stat().st_size
                except OSError:
                    continue
            return sizes

        with self.progress.meter(label, total, unit) as meter:

            def poll() -> None:
                while not stop.wait(POLL_SECONDS if objects is None else LISTING_SECONDS):
                    with suppress(OSError):  # the job itself will say what is wrong
                        meter.reach(measure())

            thread = threading.Thread(target=poll, daemon=True)
            thread.start()
            try:
                yield
                stop.set()
                thread.join()
                meter.reach(measure())
            finally:
                stop.set()
                thread.join()


@contextmanager
def without_misleading_warnings() -> Iterator[None]:
    """Hides two warnings of Beam: at import, that its Google Cloud extras are missing, which nobody
    asked for, and that several workers need a running mode, which ours do not need."""
    loggers = [logging.getLogger(), logging.getLogger(FNAPI_LOGGER)]
    for logger in loggers:
        logger.addFilter(_is_no_misleading_warning)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_misleading_warning)


def _is_no_misleading_warning(record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in MISLEADING)


class Recorded(Generic[P, R]):
    """A function whose outcome is saved before it counts as done."""

    def __init__(
        self, function: Callable[Concatenate[P, Ticks, ...], R], folder: SharedPath
    ) -> None:
        self.function, self.folder = function, folder

    def __call__(self, piece: P) -> str:
        return self.apply(piece)

    def apply(self, piece: P, *further: Any) -> str:
        """
        Args:
            further: what the transform gives the function beside the piece and its ticks.
        """
        shared = self.folder.shared
        outcome = self.function(piece, Ticks(_ticks_of(self.folder, piece.name)), *further)
        for name in files_of(outcome):
            SharedPath(shared, name).put()
        saved = _outcome_of(self.folder, piece)
        saved.here.parent.mkdir(parents=True, exist_ok=True)
        write_json(saved.here, asdict(outcome))
        saved.put()
        shared.clean()
        return piece.name


def files_of(outcome: Outcome) -> Mapping[str, int]:
    """The files that a piece has written: names of places to sizes."""
    files: Mapping[str, int] = getattr(outcome, "files", {})
    return files


def _outcome_of(folder: SharedPath, piece: Piece) -> SharedPath:
    return folder / f"{piece.name}.json"


def _ticks_of(folder: SharedPath, name: str) -> SharedPath:
    return folder / f"{name}.ticks"


def new_ticks(folder: SharedPath, name: str) -> Ticks:
    """The progress of a piece that begins, for `BeamJobs.watch`."""
    place = _ticks_of(folder, name)
    place.here.unlink(missing_ok=True)
    return Ticks(place)


def _outcomes(folder: SharedPath, pieces: Sequence[P], kind: type[R]) -> list[R | None]:
    """The saved outcome of every piece; None if it is not done, if the file is damaged, or if a
    file that it names under `files` does not have the size that it says: a power cut can take one.
    """
    folder.whole()
    size_of = folder.parent.sizes()
    outcomes: list[R | None] = []
    for piece in pieces:
        try:
            outcome = kind(**parsed(_outcome_of(folder, piece).here))
            whole = all(size_of(name) == size for name, size in files_of(outcome).items())
            outcomes.append(outcome if whole else None)
        except (OSError, ValueError, TypeError):
            outcomes.append(None)
    return outcomes


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For work that makes many small objects and no reference cycles: Python searches for cycles
    again and again, in all objects of Beam and its libraries. That took a tenth of the time of
    scoring and 4% of decoding."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
