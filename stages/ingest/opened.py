"""A unit, which is a piece of a file, and its content: unpacked, of limited size, and compared with
the digest that was planned with, as it is read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fsspec.utils import infer_compression

from model.modalities.known import MEDIA
from model.modalities.media import MediaError
from pipelines.store.sources import (
    SourceError,
    SourceReader,
    SourceStream,
    TooLargeError,
    source_changed,
    unpacked,
)
from stages.ingest.errors import RowError
from stages.ingest.locating import NOWHERE, Places
from stages.ingest.options import JudgedColumn, PixelsConfig, Split

Format = Literal["tsv", "csv", "json", "jsonl", "parquet", "gettext", "files"]
Columns = Mapping[str, str | int]
Values = dict[str, str | bytes | None]
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Parsed:
    """One row, or one reject where `reason` is set."""

    line: int
    values: Mapping[str, str | bytes | None] = field(default_factory=dict)
    reason: str | None = None
    detail: str = ""
    position: str | None = None
    """Where the row is, if not in a line of the unit's file."""


@dataclass(frozen=True)
class Limits:
    """See the options of the same names."""

    max_line_bytes: int = 4_000_000
    max_document_bytes: int = 64_000_000
    max_unpacked_bytes: int = 20_000_000_000


@dataclass(frozen=True)
class Unit:
    """A piece of a file that one worker parses, and what is done with its rows."""

    url: str
    shown: str
    format: Format
    columns: Columns
    """By the names of records."""
    number: int = 0
    """Its place in the order that the user gave."""
    split: Split | None = None
    """The split that the user gave for all rows of the file."""
    extra: bool = False
    """Whether its rows are additional ones, only for training."""
    constants: Mapping[str, str] = field(default_factory=dict)
    extract: Mapping[str, str] = field(default_factory=dict)
    replace: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reject: Mapping[str, str] = field(default_factory=dict)
    """By column name; see the same names in `stages.ingest.options.SourceConfig`."""
    judges: Mapping[str, JudgedColumn] = field(default_factory=dict)
    header: list[str] | None = None
    start: int = 0
    end: int | None = None
    line: int = 1
    explode: str | None = None
    pairs: Mapping[str, str] = field(default_factory=dict)
    """For gettext: language to the URL of its catalogue."""
    files: tuple[tuple[str, str], ...] = ()
    """For files: the name and the URL of each."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """URL to the sha256 that its content (from `start` to `end`) must have; of those without one,
    nothing is known."""
    places: Places = NOWHERE
    """Where the files may be that rows name."""
    limits: Limits = field(default_factory=Limits)
    bytes: int = 0
    """About the size of what is parsed."""
    pixels: PixelsConfig | None = None
    """For TSV and CSV: which cells make up a picture, see `stages.ingest.options.PixelsConfig`."""

    @property
    def name(self) -> str:
        """See `pipelines.running.beam_jobs.Piece`."""
        return f"{self.number:06d}"


@contextmanager
def opened(unit: Unit, url: str) -> Iterator[io.BufferedReader]:
    """The content of a file, or the unit's part of it, unpacked; then compares what was read with
    its digest, also if a parser has failed: it may have failed because the file was changed."""
    if infer_compression(url) == "zip":  # its table of contents is at the end
        with random_access(unit, url) as file:
            yield unpacked(file, url, unit.limits.max_unpacked_bytes)
        return
    stream = SourceStream(url, unit.start, unit.end)
    try:
        yield unpacked(stream, url, unit.limits.max_unpacked_bytes)
    except (SourceError, GeneratorExit):
        raise
    except Exception:
        _compare(unit, url, stream)
        raise
    else:
        _compare(unit, url, stream)
    finally:
        stream.close()


def _compare(unit: Unit, url: str, stream: SourceStream) -> None:
    wanted = unit.digests.get(url)
    if wanted is not None and stream.digest() != wanted:
        raise source_changed(url)


def document(unit: Unit, url: str) -> bytes:
    """The content of a file that must be read whole."""
    limit = unit.limits.max_document_bytes
    with opened(unit, url) as file:
        data = file.read(limit + 1)
        if len(data) > limit:
            raise TooLargeError(f"it has more than max_document_bytes: {limit:,}")
    return data


def lines(unit: Unit) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of every line, without its end; None for one that is too long."""
    limit = unit.limits.max_line_bytes
    with opened(unit, unit.url) as file:
        number = unit.line
        while True:
            line = file.readline(limit + 1)
            if not line:
                return
            if len(line) > limit and not line.endswith(b"\n"):
                while (rest := file.readline(1 << 16)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            else:
                if number == 1:
                    line = line.removeprefix(BOM)
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")
            number += 1


def too_long(unit: Unit) -> RowError:
    return RowError("line too long", f"more than max_line_bytes: {unit.limits.max_line_bytes:,}")


def decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = line[max(0, error.start - 20) : error.end + 20]
        raise RowError("broken UTF-8", f"byte {error.start + 1} of {shown!r}") from error


@contextmanager
def random_access(unit: Unit, url: str) -> Iterator[SourceReader]:
    """A file whose parts are read in any order: first it is read from beginning to end and compared
    with its digest, and at the end it must still be the same file."""
    with SourceReader(url) as file:
        before = file.identity()
        if url in unit.digests:
            with SourceStream(url) as stream:
                _compare(unit, url, stream)
        try:
            yield file
        finally:
            if url in unit.digests and file.identity() != before:
                raise SourceError(f"{url} has changed while it was read; run again")


def content(name: str, value: Any) -> Any:
    """The content that a cell of a modality holds itself, as bytes, or the value as it is."""
    try:
        held = MEDIA[name].held(value)
    except MediaError as error:
        raise RowError(error.reason, error.detail) from error
    return value if held is None else held
