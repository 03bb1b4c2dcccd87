"""Computed slices: how long a reference is, and how rare its rarest word is in training.

Words are tokens of BLEU's tokenizer for the task.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from sacrebleu.metrics import BLEU

from pipelines.internals.sacre_bleu import tokenized
from stages.measures.metrics import LENGTH, RARITY
from stages.rows.shards import table_groups, write_table

if TYPE_CHECKING:
    from pipelines.store.artifacts import Artifact

LENGTHS = (1, 11, 21, 31, 51)
"""First number of words in each bucket."""
RARITIES = (0, 1, 5, 20, 100)
"""How often the rarest word occurs in the training references: first number of each bucket."""


def bucket(number: int, starts: Sequence[int]) -> str:
    """The range that a number is in, as text."""
    index = max(0, bisect_right(starts, number) - 1)
    first = starts[index]
    if index + 1 == len(starts):
        return f"{first} or more"
    last = starts[index + 1] - 1
    return str(first) if first == last else f"{first}–{last}"


@cache
def _tokenizer(name: str) -> BLEU:
    return BLEU(tokenize=name)


def words(text: str, tokenizer: str) -> list[str]:
    """A text's words as BLEU counts them."""
    return tokenized(_tokenizer(tokenizer), text).split()


def count_words(records: Iterable[Artifact], tokenizers: Mapping[str, str], path: Path) -> None:
    """Writes how often each word occurs in the training targets of each task."""
    counts: dict[str, Counter[str]] = {task: Counter() for task in tokenizers}
    for artifact in records:
        for shard in artifact.files("rows/*.parquet"):
            for rows in table_groups(shard, ["split", "task", "target"]):
                train = rows.filter(split="train").select("task", "target")
                for task, target in train.iter_rows():
                    if task in counts:
                        counts[task].update(words(target, tokenizers[task]))
    entries = [
        {"task": task, "word": word, "times": times}
        for task, counter in counts.items()
        for word, times in sorted(counter.items())
    ]
    schema = {"task": pl.String, "word": pl.String, "times": pl.Int64}
    write_table(pl.DataFrame(entries, schema=schema), path)


@cache
def _counts(path: Path) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for task, word, times in pl.read_parquet(path).iter_rows():
        counts.setdefault(task, {})[word] = times
    return counts


def with_slices(
    rows: pl.DataFrame, wanted: Iterable[str], task: str, tokenizer: str, counts: Path | None
) -> pl.DataFrame:
    """Rows of a task; adds the computed columns that are wanted and that they do not have yet."""
    missing = {name for name in (LENGTH, RARITY) if name in wanted and name not in rows.columns}
    if not missing:
        return rows
    split = [words(text, tokenizer) for text in rows["reference"]]
    if LENGTH in missing:
        values = [bucket(len(tokens), LENGTHS) for tokens in split]
        rows = rows.with_columns(pl.Series(LENGTH, values, dtype=pl.String))
    if RARITY in missing and counts is not None:
        known = _counts(counts).get(task, {})
        least = [min((known.get(word, 0) for word in tokens), default=0) for tokens in split]
        values = [bucket(times, RARITIES) for times in least]
        rows = rows.with_columns(pl.Series(RARITY, values, dtype=pl.String))
    return rows


def natural(text: str) -> list[tuple[int, int | str]]:
    """A sort key by which 5 comes before 20."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]
