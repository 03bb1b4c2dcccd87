"""The dates of which a pipeline has no good run: `python -m pipelines.missing runs/gemini`.

A run is for the date in its variable, `--set variables.date=2026-11-30`. Prints one date per line,
so that the runs that are missing can be made up for:

    for date in $(python -m pipelines.missing runs/gemini --from 2026-11-01); do
        python -m pipelines.run pipeline.yaml --set variables.date=$date --set baseline=none
    done
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from pipelines.contracts.runs import RunRecord, run_folders
from pipelines.contracts.shown import complain
from pipelines.store.runs_dir import run_folder

MOST_DAYS = 100_000


def dates_of(home: Path, variable: str) -> Iterator[date]:
    """The dates of the runs in a pipeline's folder that are complete, of all stages."""
    for folder in run_folders(home):
        try:
            record = RunRecord.read(folder)
        except (OSError, ValueError) as error:
            complain(f"left out: {error}")
            continue
        whole = all(stage.status != "skipped" for stage in record.stages.values())
        if record.status == "complete" and whole:
            try:
                yield date.fromisoformat(record.variables.get(variable, ""))
            except ValueError:
                continue


def missing(home: Path, variable: str, first: date, last: date) -> Iterator[date]:
    """The dates from `first` to `last` without a good run."""
    done = set(dates_of(home, variable))
    for days in range((last - first).days + 1):
        day = first + timedelta(days)
        if day not in done:
            yield day


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.missing",
        description="Prints the dates of which a pipeline has no good run.",
    )
    add = command.add_argument
    add(
        "runs",
        type=run_folder,
        help="the folder of the pipeline's runs, such as runs/gemini, or its URL",
    )
    add("--variable", default="date", help="what holds a run's date (default: %(default)s)")
    add(
        "--from",
        dest="first",
        type=date.fromisoformat,
        metavar="DATE",
        help="the first date (default: that of the first good run)",
    )
    add(
        "--to",
        dest="last",
        type=date.fromisoformat,
        metavar="DATE",
        help="the last date (default: yesterday)",
    )
    options = command.parse_args(arguments)
    if not options.runs.is_dir():
        complain(f"there is no folder {options.runs}")
        return 2
    first = options.first or min(dates_of(options.runs, options.variable), default=None)
    last = options.last or date.today() - timedelta(1)
    if first is None:
        complain(f"no run in {options.runs} has a date in {options.variable}; give --from DATE")
        return 2
    if (last - first).days > MOST_DAYS:
        complain(f"from {first} to {last} there are more than {MOST_DAYS:,} days")
        return 2
    for day in missing(options.runs, options.variable, first, last):
        print(day.isoformat())
    return 0


if __name__ == "__main__":
    sys.exit(main())
