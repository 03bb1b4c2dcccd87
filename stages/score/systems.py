"""Other systems' outputs for the same rows: files of lines in the order of `text/*.src.txt`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.store.sources import SourceStream, check_planned

if TYPE_CHECKING:
    import polars as pl

    from pipelines.stage import Context
    from pipelines.store.artifacts import Artifact


AT_ONCE = 10_000


def files_of(pattern: str, base: Path) -> list[Path]:
    """The files that a name with `{task}` and `{split}` matches. Raises `ValueError` for none."""
    full = (base / pattern.replace("{task}", "*").replace("{split}", "*")).absolute()
    paths = sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))
    if not paths:
        raise ValueError(f"systems: there is no file {pattern} in {base}")
    return paths


def named(system: str, path: Path, base: Path) -> str:
    """The name of a system's file in a plan."""
    shown = path.relative_to(base) if path.is_relative_to(base) else path
    return f"system {system}: {shown.as_posix()}"


def system_rows(
    predictions: Artifact, system: str, pattern: str, context: Context
) -> Iterator[pl.DataFrame]:
    """Rows of each task and split that has a file, with that file's lines as hypotheses.

    Raises `ValueError` if a file does not have one line for each row, or if no task has a file, and
    `SourceError` if a file is not the one that was planned with.
    """
    # Imported here, because planning calls `files_of`, and must load nothing heavy.
    import polars as pl

    from stages.rows.shards import row_shards, table_groups

    base = context.base.absolute()
    files: dict[tuple[str, str], Lines | None] = {}
    held: dict[tuple[str, str], list[pl.DataFrame]] = {}
    groups = (group for path in row_shards(predictions) for group in table_groups(path))
    for group in groups:
        for key, part in group.group_by(["task", "split"], maintain_order=True):
            task, split = map(str, key)
            if (task, split) not in files:
                path = base / pattern.replace("{task}", task).replace("{split}", split)
                files[task, split] = Lines(path) if path.is_file() else None
            lines = files[task, split]
            if lines is not None:
                hypotheses = lines.take(len(part))
                said = pl.Series("hypothesis", hypotheses, dtype=pl.String)
                parts = held.setdefault((task, split), [])
                parts.append(part.head(len(hypotheses)).with_columns(said))
                if sum(map(len, parts)) >= AT_ONCE:
                    yield pl.concat(held.pop((task, split)), how="diagonal")
    for parts in held.values():
        yield pl.concat(parts, how="diagonal")
    for (task, split), lines in files.items():
        if lines is None:
            continue
        rows = lines.asked
        count, digest = lines.close()
        check_planned(named(system, lines.path, base), digest, context.outside)
        if count != rows:
            raise ValueError(
                f"systems: {lines.path} has {count:,} lines, but {task} has {rows:,} rows in "
                f"{split}; it needs one line for each line of text/{task}.{split}.src.txt"
            )
    if not any(files.values()):
        tasks = ", ".join(sorted({task for task, _ in files}))
        raise ValueError(f"systems: there is no file {pattern} for any task; the tasks are {tasks}")


class Lines:
    """A file's lines, some at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.given = path, 0, 0
        self.stream = SourceStream(str(path))
        buffered = io.BufferedReader(self.stream, 1 << 20)
        self.lines = io.TextIOWrapper(buffered, encoding="utf-8", newline="\n")

    def take(self, count: int) -> list[str]:
        """The next lines: fewer, if there are not so many. Raises `ValueError` for what is not
        UTF-8."""
        try:
            lines = [
                line.removesuffix("\n").removesuffix("\r") for line in islice(self.lines, count)
            ]
        except UnicodeDecodeError as error:
            raise ValueError(f"systems: {self.path} is not UTF-8: {error}") from error
        self.asked, self.given = self.asked + count, self.given + len(lines)
        return lines

    def close(self) -> tuple[int, str]:
        """How many lines the file has, and its digest; it is read to its end."""
        while self.take(AT_ONCE):
            pass
        digest = self.stream.digest()
        self.lines.close()
        return self.given, digest
