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
from pipelines.store.artifacts import LockHeldError, Store, lock


def homes(runs_dir: Path) -> list[Path]:
    """The folders of the pipelines."""
    return sorted({path.parent.parent for path in runs_dir.glob(f"*/*/{RUN}")})


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


def in_use(runs_dir: Path, keep: int) -> tuple[set[str], set[Path]]:
    """Names of the artifacts and of the unfinished work that the runs use which are kept; and the
    folders of these runs."""
    names, runs = set(), set()
    for home in homes(runs_dir):
        for folder, record in kept(home, keep):
            runs.add(folder)
            names |= {
                Path(stage.artifact).name for stage in record.stages.values() if stage.artifact
            }
            names |= {record.unfinished} if record.unfinished else set()
    return names, runs


def remove_runs(runs_dir: Path, keep: set[Path]) -> Iterator[Path]:
    """Removes the folders of all runs but those of `keep`; passes over a pipeline that runs."""
    for home in homes(runs_dir):
        with suppress(LockHeldError), lock(home / ".lock"):
            for folder in run_folders(home):
                if folder not in keep:
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
    add("runs_dir", type=Path, help="the folder of --runs-dir")
    add(
        "--keep",
        type=int,
        default=5,
        help="keep the results of this many last runs of each pipeline (default: 5)",
    )
    add("--runs", action="store_true", help="also remove the records and reports of older runs")
    add("--unfinished", action="store_true", help="also remove what stopped runs could resume")
    options = command.parse_args(arguments)
    if not options.runs_dir.is_dir():
        complain(f"there is no folder {options.runs_dir}")
        return 2
    if options.keep < 0:
        command.error("--keep must not be negative")
    store = Store(options.runs_dir / "store")
    try:
        names, runs = in_use(options.runs_dir, options.keep)
        if options.unfinished:
            names -= {path.name for path in store.root.glob("work/*")} - {
                path.name for path in store.artifacts()
            }
        for folder in store.collect(names):
            tell(f"removed {folder}")
        for folder in remove_runs(options.runs_dir, runs) if options.runs else ():
            tell(f"removed {folder}")
    except (OSError, ValueError) as error:
        complain(f"collection stopped: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
