"""Garbage collection: `python -m pipelines.collect runs --keep 5`.

Removes results that the last runs of the pipelines do not use. It keeps what a running pipeline is
making, and all run records and reports.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.contracts.runs import RunRecord
from pipelines.store.artifacts import LockHeldError, Store, lock


def used(runs_dir: Path, keep: int) -> list[Path]:
    """Artifacts that the last `keep` runs of each pipeline use, and those of each `latest`."""
    artifacts = []
    for home in sorted(path for path in runs_dir.iterdir() if path.is_dir()):
        records = [path for path in home.glob("*/run.json") if not path.parent.is_symlink()]
        chosen = sorted(records, reverse=True)[:keep]
        if (home / "latest" / "run.json").exists():
            chosen.append(home / "latest" / "run.json")
        for record in chosen:
            stages = RunRecord.read(record.parent).stages.values()
            artifacts += [runs_dir / facts.artifact for facts in stages if facts.artifact]
    return artifacts


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.collect",
        description="Removes results that the last runs of the pipelines do not use.",
    )
    command.add_argument("runs_dir", type=Path, help="the folder of --runs-dir")
    command.add_argument(
        "--keep",
        type=int,
        default=5,
        help="keep the results of this many last runs of each pipeline (default: 5)",
    )
    options = command.parse_args(arguments)
    homes = [path for path in sorted(options.runs_dir.iterdir()) if (path / ".lock").exists()]
    try:
        for home in homes:
            with lock(home / ".lock"):
                pass
    except LockHeldError as error:
        print(f"a run is in progress ({error}); try again when it has ended", file=sys.stderr)
        return 75
    try:
        in_use = used(options.runs_dir, options.keep)
    except (OSError, ValueError) as error:
        print(f"nothing was removed: {error}", file=sys.stderr)
        return 1
    removed = Store(options.runs_dir / "store").collect(in_use)
    for folder in removed:
        print(f"removed {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
