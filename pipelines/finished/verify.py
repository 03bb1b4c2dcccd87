"""Whether everything is as it was stored: `python -m pipelines.verify runs`.

Reads every file of every result, whatever is remembered of it, and compares it with the digest in
its manifest. The next run makes again what is damaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from pipelines.contracts.base import parsed
from pipelines.contracts.runs import RUN, RunRecord
from pipelines.contracts.shown import complain, tell
from pipelines.store.objects import ObjectStoreError
from pipelines.store.runs_dir import RunsDir
from pipelines.store.shared import MANIFEST


def damage(runs: RunsDir) -> Iterator[str]:
    """A sentence for everything that is not as it was stored."""
    store = runs.store()
    for folder in store.artifacts():
        try:
            artifact = store.read(folder)
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
    for pipeline in runs.pipelines():
        runs.pull(pipeline)
    for path in sorted(runs.folder.glob(f"*/*/{RUN}")):
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
        epilog="exit codes: 0 all is as it was stored, 1 something is damaged, 2 it cannot be read",
    )
    command.add_argument("runs_dir", help="the folder of --runs-dir, or its URL")
    options = command.parse_args(arguments)
    runs = RunsDir.of(options.runs_dir)
    count = 0
    try:
        if not runs.exists():
            complain(f"there is no folder {runs}")
            return 2
        for sentence in damage(runs):
            tell(sentence)
            count += 1
        artifacts = len(runs.store().artifacts())
    except ObjectStoreError as error:
        complain(f"stopped: {error}")
        return 2
    tell(f"{artifacts} results, {count} problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
