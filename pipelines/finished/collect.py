"""Garbage collection: `python -m pipelines.collect runs --keep 5`.

Removes results that the last runs of the pipelines do not use. It works beside runs: what a run
makes, uses or can resume stays. Records and reports of runs stay too, unless `--runs` is given.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipelines.contracts.base import LaterVersionError
from pipelines.contracts.runs import RUN, RunRecord, run_folders
from pipelines.contracts.shown import complain, tell
from pipelines.store.leases import LockHeldError
from pipelines.store.runs_dir import RunsDir


def kept(home: Path, keep: int) -> Iterator[tuple[Path, RunRecord]]:
    """The last `keep` runs of a pipeline, `latest`, and those that have not ended.

    A record that is damaged is told and left out: nothing can be made of it any more. Raises
    `LaterVersionError` if a later version wrote one, which may use results that this one does not
    know, and `OSError` if one cannot be read.
    """
    latest = (home / "latest").resolve()
    readable = 0
    for folder in run_folders(home):
        try:
            record = RunRecord.read(folder)
        except LaterVersionError:
            raise
        except ValueError as error:
            complain(f"passed over: {error}")
            continue
        if readable < keep or folder.resolve() == latest or record.status == "running":
            yield folder, record
        readable += 1


def in_use(runs: RunsDir, keep: int) -> tuple[set[str], set[Path]]:
    """Names of the artifacts and of the unfinished work that the runs use which are kept; and the
    folders of these runs."""
    names, folders = set(), set()
    for pipeline in runs.pipelines():
        runs.pull(pipeline)
        for folder, record in kept(runs.folder / pipeline, keep):
            folders.add(folder)
            names |= {
                Path(stage.artifact).name for stage in record.stages.values() if stage.artifact
            }
            names |= {record.unfinished} if record.unfinished else set()
    return names, folders


def remove_runs(runs: RunsDir, keep: set[Path]) -> Iterator[Path]:
    """Removes the folders of all runs but those of `keep`; passes over a pipeline that runs."""
    for pipeline in runs.pipelines():
        with suppress(LockHeldError), runs.lock(pipeline, None):
            for folder in run_folders(runs.folder / pipeline):
                if folder not in keep:
                    runs.remove_run(folder)
                    # Without its record it is no run any more, wherever this is interrupted.
                    (folder / RUN).unlink()
                    shutil.rmtree(folder)
                    yield folder


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.collect",
        description="Removes results that the last runs of the pipelines do not use.",
    )
    add = command.add_argument
    add("runs_dir", help="the folder of --runs-dir, or its URL")
    add(
        "--keep",
        type=int,
        default=5,
        help="keep the results of this many last runs of each pipeline (default: 5)",
    )
    add("--runs", action="store_true", help="also remove the records and reports of older runs")
    add("--unfinished", action="store_true", help="also remove what stopped runs could resume")
    options = command.parse_args(arguments)
    if options.keep < 0:
        command.error("--keep must not be negative")
    runs = RunsDir.of(options.runs_dir)
    try:
        if not runs.exists():
            complain(f"there is no folder {runs}")
            return 2
        store = runs.store()
        names, used = in_use(runs, options.keep)
        if options.unfinished:
            names -= set(store.unfinished()) - {path.name for path in store.artifacts()}
        for name in store.collect(names):
            tell(f"removed {name}")
        for folder in remove_runs(runs, used) if options.runs else ():
            tell(f"removed {folder}")
    except (OSError, ValueError) as error:
        complain(f"collection stopped: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
