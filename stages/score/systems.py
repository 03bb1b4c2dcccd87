"""Other systems' outputs for the same rows: files of lines in the order of `text/*.src.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from pipelines.store.artifacts import Artifact


def files_of(pattern: str, base: Path) -> list[Path]:
    """The files that a name with `{task}` and `{split}` matches. Raises `ValueError` for none."""
    full = (base / pattern.replace("{task}", "*").replace("{split}", "*")).absolute()
    paths = sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))
    if not paths:
        raise ValueError(f"systems: there is no file {pattern} in {base}")
    return paths


def system_rows(predictions: Artifact, pattern: str, base: Path) -> Iterator[pl.DataFrame]:
    """Rows of each task and split that has a file, with that file's lines as hypotheses.

    Raises `ValueError` if a file does not have one line for each row, or if no task has a file.
    """
    # Imported here, because planning calls `files_of`, and must load nothing heavy.
    import polars as pl

    from stages.rows.shards import read_rows

    table, matched = read_rows(predictions), False
    for (task, split), part in table.group_by(["task", "split"], maintain_order=True):
        path = base / pattern.replace("{task}", str(task)).replace("{split}", str(split))
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(lines) != len(part):
            raise ValueError(
                f"systems: {path} has {len(lines):,} lines, but {task} has {len(part):,} rows in "
                f"{split}; it needs one line for each line of text/{task}.{split}.src.txt"
            )
        matched = True
        yield part.with_columns(hypothesis=pl.Series(lines, dtype=pl.String))
    if not matched:
        tasks = ", ".join(sorted(set(table["task"])))
        raise ValueError(f"systems: there is no file {pattern} for any task; the tasks are {tasks}")
