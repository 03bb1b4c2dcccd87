"""Whether everything is as it was stored: `python -m pipelines.verify runs`.

Reads every file of every result, whatever is remembered of it, and compares it with the digest in
its manifest. The next run makes again what is damaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pipelines.contracts.base import parsed
from pipelines.contracts.runs import RUN, RunRecord
from pipelines.contracts.shown import complain, tell
from pipelines.store.artifacts import MANIFEST, Store, read_artifact


def damage(runs_dir: Path) -> Iterator[str]:
    """A sentence for everything that is not as it was stored."""
    store = Store(runs_dir / "store")
    for folder in store.artifacts():
        try:
            artifact = read_artifact(folder)
        except ValueError as error:
            yield str(error)
            continue
        if artifact is None:
            yield f"{folder / MANIFEST} is missing or damaged"
        else:
            for problem in store.problems(artifact, again=True):
                yield f"{folder}: {problem}"
    for path in sorted(store.root.glob("measured/[!.]*.json")):
        try:
            parsed(path)
        except (OSError, ValueError) as error:
            yield f"{error}; only how long its result took is lost"
    for path in sorted(runs_dir.glob(f"*/*/{RUN}")):
        if not path.parent.is_symlink():
            try:
                RunRecord.read(path.parent)
            except (OSError, ValueError) as error:
                yield str(error)


def main(arguments: list[str] | None = None) -> int:
    command = argparse.ArgumentParser(
        prog="python -m pipelines.verify",
        description="Reads all results and run records, and names what is damaged. The next run "
        "makes damaged results again.",
        epilog="exit codes: 0 all is as it was stored, 1 something is damaged, 2 no such folder",
    )
    command.add_argument("runs_dir", type=Path, help="the folder of --runs-dir")
    options = command.parse_args(arguments)
    if not options.runs_dir.is_dir():
        complain(f"there is no folder {options.runs_dir}")
        return 2
    count = 0
    for sentence in damage(options.runs_dir):
        tell(sentence)
        count += 1
    artifacts = len(Store(options.runs_dir / "store").artifacts())
    tell(f"{artifacts} results, {count} problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
