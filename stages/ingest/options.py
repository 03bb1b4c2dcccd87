"""The options of `ingest`, as a user writes them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from model.modalities.known import MEDIA, MODALITIES, in_words
from pipelines.contracts.predictions import WISHED
from pipelines.contracts.tasks import TaskName
from pipelines.stage import Config
from stages.judges import JudgeConfig, check_patterns

Split = Literal["train", "valid", "test"]


SPLITS: tuple[Split, ...] = ("train", "valid", "test")


Deduplicate = Literal["none", "exact", "normalized"]


ROW_COLUMNS = (*MODALITIES, "target", "id")


OWN_COLUMNS = frozenset({
    "split", "task", "modalities", "position", "source", "group", "number", "line", "reason",
    *(f"{name}_{fact}" for name in MEDIA for fact in ("url", "name", "sha256")),
    "reference", "prepared_source", "prepared_target", "source_ids", "target_ids",
    "shard", "row", "part", "hypothesis", "tokens", "log_probability",
    "token_log_probabilities", "finished", "labels", "probabilities", "best",
    "reference_log_probability", "reference_tokens", "reference_correct", "asked", "said",
    "references",
})  # fmt: skip
"""Columns that stages write into rows, so that no free column is allowed to have these names."""


class PixelsConfig(Config):
    """Pictures that are written as numbers in the cells of a table, row by row."""

    columns: Annotated[
        str, Field(pattern=r"^\d+-\d+$", description="first and last column, counted from 1: 1-64")
    ]
    width: Annotated[int, Field(ge=1, description="pixels in a row")]
    maximum: Annotated[float, Field(gt=0, description="the number that means white")] = 255


class JudgedColumn(JudgeConfig):
    """A column of your own that says what another column is."""

    column: Annotated[str, Field(description="the column that is judged")] = "target"


class SourceConfig(Config):
    """Files of one layout."""

    source: Annotated[
        str | list[str] | dict[Split, str | list[str]],
        Field(
            description="path, glob, fsspec URL or package://NAME/PATH, or a list; or one for each "
            "of train, valid and test"
        ),
    ]
    format: Annotated[
        Literal["tsv", "csv", "json", "jsonl", "parquet", "gettext", "files"] | None,
        Field(
            description="inferred from the file's name if not given; files: each picture or sound "
            "is a row, with the columns path, name and folder"
        ),
    ] = None
    columns: Annotated[
        dict[str, str | int],
        Field(
            description="target and any of "
            f"{in_words(MODALITIES)} (paths relative to the table's folder, or the content), "
            "optionally id, and columns of your own; each to a name in the header, a number "
            "from 1, a dotted path (JSON) or a language (gettext)"
        ),
    ]
    constants: Annotated[
        dict[str, str],
        Field(description="columns of your own that have one value in all rows, such as a corpus"),
    ] = {}
    judge: Annotated[
        dict[str, JudgedColumn],
        Field(
            description="columns of your own that say what a text is, for instance formal or "
            "informal: for wishes in train, and for slices; empty where the judge cannot say"
        ),
    ] = {}
    header: Annotated[bool, Field(description="whether TSV and CSV begin with column names")] = True
    explode: Annotated[
        str | None, Field(description="list in a JSON record whose elements are the rows")
    ] = None
    pixels: Annotated[
        PixelsConfig | None, Field(description="columns of a TSV or CSV that make up the image")
    ] = None
    replace: Annotated[
        dict[str, dict[str, str]],
        Field(description="column to a map, old value to new; rows of other values are rejected"),
    ] = {}
    extract: Annotated[
        dict[str, str],
        Field(description="column to a regular expression: its first match is used as the value"),
    ] = {}
    reject: Annotated[
        dict[str, str], Field(description="column to a regular expression that rejects rows")
    ] = {}
    allow: Annotated[
        list[str],
        Field(
            description="folders and URL prefixes, besides the table's own folder, in which files "
            "may be that rows name"
        ),
    ] = []

    @field_validator("columns")
    @classmethod
    def _has_target(cls, value: dict[str, str | int]) -> dict[str, str | int]:
        if "target" not in value:
            raise ValueError("must say where target is")
        if any(isinstance(column, int) and column < 1 for column in value.values()):
            raise ValueError("columns are counted from 1")
        _check_names(value)
        return value

    @field_validator("constants")
    @classmethod
    def _own(cls, value: dict[str, str]) -> dict[str, str]:
        _check_own(value, "cannot be the same in all rows")
        return value

    @field_validator("judge")
    @classmethod
    def _judged(cls, value: dict[str, JudgedColumn]) -> dict[str, JudgedColumn]:
        _check_own(value, "is not a column of your own")
        return value

    @property
    def free(self) -> list[str]:
        """The columns of the user's own."""
        return [
            name
            for name in (*self.columns, *self.constants, *self.judge)
            if name not in ROW_COLUMNS
        ]

    @field_validator("extract", "reject")
    @classmethod
    def _compiles(cls, value: dict[str, str]) -> dict[str, str]:
        check_patterns(value.values())
        return value

    @model_validator(mode="after")
    def _columns_known(self) -> SourceConfig:
        given: list[tuple[str, Mapping[str, object]]] = [
            ("columns", self.columns),
            ("constants", self.constants),
            ("judge", self.judge),
        ]
        for (first, some), (second, others) in combinations(given, 2):
            if both := sorted(some.keys() & others.keys()):
                raise ValueError(f"{second}: and {first}: both have {both[0]}")
        for name, judged in self.judge.items():
            if judged.column not in (*self.columns, *self.constants):
                raise ValueError(f"judge.{name}: {judged.column!r} is not in columns:")
            if judged.column in MEDIA:
                raise ValueError(f"judge.{name}: judges are for text, not for {judged.column}")
        if not self.pixels and not set(MODALITIES) & self.columns.keys():
            raise ValueError(f"columns: must say where {in_words(MODALITIES, 'or')} is")
        unknown = self.reject.keys() | self.extract.keys() | self.replace.keys()
        unknown -= self.columns.keys()
        if unknown:
            raise ValueError(
                f"extract:, replace: or reject: names {', '.join(sorted(unknown))}, which is not "
                "in columns:"
            )
        return self

    def listed(self) -> list[tuple[Split | None, str]]:
        """(declared split, pattern) of every source."""
        if isinstance(self.source, dict):
            return [
                (split, pattern)
                for split, patterns in self.source.items()
                for pattern in ([patterns] if isinstance(patterns, str) else patterns)
            ]
        patterns = [self.source] if isinstance(self.source, str) else self.source
        return [(None, pattern) for pattern in patterns]


def _check_own(columns: Mapping[str, object], said: str) -> None:
    """Raises `ValueError`, with what is `said`, for a column that is not the user's own."""
    _check_names(columns)
    taken = min(columns.keys() & set(ROW_COLUMNS), default=None)
    if taken is not None:
        raise ValueError(f"{taken} {said}")


def _check_names(columns: Mapping[str, object]) -> None:
    own = {name for name in columns if name in OWN_COLUMNS or name.startswith(WISHED)}
    taken = min(own, default=None)
    if taken is not None:
        raise ValueError(
            f"{taken} is a name that the pipeline uses itself; give the column another name, "
            f"for example my_{taken.removeprefix(WISHED)}: {columns[taken]}"
        )


class IngestConfig(SourceConfig):
    """Which files, which columns, and how rows are split."""

    also: Annotated[
        list[SourceConfig],
        Field(description="more files with other layouts, only for the training split"),
    ] = []
    task: Annotated[
        TaskName, Field(description="name of the task, in the records and the scores")
    ] = "translate"
    labels: Annotated[
        bool | list[str],
        Field(
            description="whether the targets are labels of a classification: a list of them, or "
            "true to take them from the training split"
        ),
    ] = False
    languages: Annotated[
        dict[Literal["text", "target"], str],
        Field(description="language codes; that of the target selects BLEU's tokenizer"),
    ] = {}
    split: Annotated[
        dict[Literal["valid", "test"], int | float],
        Field(description="number (integer) or share (below 1) of rows in valid and test"),
    ] = {}
    references: Annotated[
        int,
        Field(
            ge=0,
            le=20,
            description="in valid and test, rows of one source become one, with up to this many "
            "more targets in the columns target_2, target_3, … (see score's references:)",
        ),
    ] = 0
    max_file_bytes: Annotated[
        int, Field(ge=1, description="largest picture or sound file that is read")
    ] = 100_000_000
    max_line_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="longest line of a TSV or JSON lines, longest row of a CSV, longest record "
            "of a JSON list",
        ),
    ] = 4_000_000
    max_document_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="largest JSON list or gettext catalogue, which are read whole, and largest "
            "record of a Parquet file; the most that all rows of an exploded record may have",
        ),
    ] = 64_000_000
    max_unpacked_bytes: Annotated[
        int,
        Field(
            ge=1,
            description="most that a compressed file may unpack to, and that the rows of a Parquet "
            "file may have",
        ),
    ] = 20_000_000_000
    deduplicate: Annotated[
        Deduplicate,
        Field(
            description="which repeated pairs to drop; normalized ignores case, punctuation, and "
            "in Chinese whether characters are simplified"
        ),
    ] = "normalized"
    shards: Annotated[int, Field(ge=1, le=99999, description="files the rows are spread over")] = 4
    max_rejected: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="the stage fails if more than this share is bad, duplicates not counted",
        ),
    ] = 0.5

    @field_validator("split")
    @classmethod
    def _sizes(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        for name, size in value.items():
            if not size >= 0 or (isinstance(size, float) and size >= 1):
                raise ValueError(f"{name}: must be a whole number of rows or a share below 1")
        if sum(size for size in value.values() if isinstance(size, float)) >= 1:
            raise ValueError("the shares leave nothing to train on")
        return value

    @model_validator(mode="after")
    def _split_once(self) -> IngestConfig:
        if isinstance(self.source, dict) and self.split:
            raise ValueError("split: and a source: for each split cannot both be given")
        return self
