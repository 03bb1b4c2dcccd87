"""Other systems' outputs for the same rows: files of lines in the order of `text/*.src.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store.artifacts import Artifact


def files_of(pattern: str, base: Path) -> list[Path]:
    """The files that a name with `{task}` and `{split}` may mean. Raises `ValueError` for none."""
    full = (base / pattern.replace("{task}", "*").replace("{split}", "*")).absolute()
    found = sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))
    if not found:
        raise ValueError(f"systems: there is no file {pattern} in {base}")
    return found


def system_rows(predictions: Artifact, pattern: str, base: Path) -> Iterator[pl.DataFrame]:
    """Rows of each task and split that has a file, with that file's lines as hypotheses.

    Raises `ValueError` for a file that has not one line for each row, or where no task has a file.
    """
    # Imported here, because planning asks which files there are, and loads nothing heavy.
    import polars as pl

    from stages.rows.shards import read_rows

    table, found = read_rows(predictions), False
    for (task, split), part in table.group_by(["task", "split"], maintain_order=True):
        path = base / pattern.replace("{task}", str(task)).replace("{split}", str(split))
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(lines) != len(part):
            raise ValueError(
                f"systems: {path} has {len(lines):,} lines, but {task} has {len(part):,} rows in "
                f"{split}; it needs a line for each line of text/{task}.{split}.src.txt"
            )
        found = True
        yield part.with_columns(hypothesis=pl.Series(lines, dtype=pl.String))
    if not found:
        tasks = ", ".join(sorted(set(table["task"])))
        raise ValueError(f"systems: {pattern} is a file of no task; there are {tasks}")
