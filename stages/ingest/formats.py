"""Parsers of data files into rows of text. A bad line becomes a reject; it never stops a file.

Every parser yields `Parsed` values: the selected columns as strings, or why the row was rejected,
with the number of the line (of the record, if the format has no lines) it came from. Files are read
as streams, a line at a time, and what was read is compared with the digest that was planned with.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
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
from stages.ingest.options import ROW_COLUMNS, PixelsConfig, Split

Format = Literal["tsv", "csv", "json", "jsonl", "parquet", "gettext", "files"]
EXTENSIONS: dict[str, Format] = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".po": "gettext",
    ".mo": "gettext",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "files"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"), "files"),
}
SPLITTABLE: frozenset[Format] = frozenset({"tsv", "jsonl"})
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
BOM = b"\xef\xbb\xbf"

Columns = Mapping[str, str | int]


@dataclass(frozen=True)
class Parsed:
    """One row, or one reject where `reason` is set."""

    line: int
    values: Mapping[str, str | bytes | None] = field(default_factory=dict)
    reason: str | None = None
    detail: str = ""
    position: str | None = None
    """Where the row is, if not in a line of the unit's file."""


def infer_format(name: str) -> Format:
    """The format that a file name implies. Raises `ValueError` if it implies none."""
    path = PurePosixPath(name)
    suffix = path.suffix if path.suffix not in COMPRESSED else PurePosixPath(path.stem).suffix
    if suffix.lower() not in EXTENSIONS:
        raise ValueError(
            f"the format of {name} cannot be inferred from its name; set format: to one of "
            f"{', '.join(sorted(set(EXTENSIONS.values())))}"
        )
    return EXTENSIONS[suffix.lower()]


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
    extract: Mapping[str, str] = field(default_factory=dict)
    replace: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reject: Mapping[str, str] = field(default_factory=dict)
    """By column name; see the same names in `stages.ingest.options.SourceConfig`."""
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


def changed(values: Mapping[str, str | bytes | None], unit: Unit) -> Values:
    """The values of a row after `extract:` and `replace:`. Raises `RowError`."""
    result: Values = dict(values)
    for name, pattern in unit.extract.items():
        match = re.search(pattern, str(result.get(name) or ""))
        result[name] = match[0].strip() if match else ""
    for name, replacements in unit.replace.items():
        value = result.get(name)
        if not isinstance(value, str) or value not in replacements:
            raise RowError(f"{name} has no replacement", repr(value))
        result[name] = replacements[value]
    return result


def parse(unit: Unit) -> Iterator[Parsed]:
    """All rows of a unit. Raises `SourceError` if a file cannot be had, or is not the one that was
    planned with."""
    parsers: dict[Format, Callable[[Unit], Iterator[Parsed]]] = {
        "tsv": _tsv,
        "csv": _csv,
        "jsonl": _jsonl,
        "json": _json,
        "parquet": _parquet,
        "gettext": _gettext,
        "files": _files,
    }
    try:
        yield from parsers[unit.format](unit)
    except (SourceError, GeneratorExit):
        raise
    except Exception as error:  # unpacking libraries have errors of their own
        # The whole file, or all of it after this point, is damaged: it counts as one reject.
        what = str(error).splitlines()
        detail = f"{type(error).__name__}: {what[0] if what else ''}"
        yield Parsed(0, reason=UNREADABLE, detail=detail)


UNREADABLE = "unreadable file"
"""Of a file that is damaged as a whole, or from some point on."""


@contextmanager
def _opened(unit: Unit, url: str) -> Iterator[io.BufferedReader]:
    """The content of a file, or the unit's part of it, unpacked; then compares what was read with
    its digest, also if a parser has failed: it may have failed because the file was changed."""
    if infer_compression(url) == "zip":  # its table of contents is at the end
        with _random_access(unit, url) as file:
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


def _document(unit: Unit, url: str) -> bytes:
    """The content of a file that must be read whole."""
    limit = unit.limits.max_document_bytes
    with _opened(unit, url) as file:
        data = file.read(limit + 1)
        if len(data) > limit:
            raise TooLargeError(f"it has more than max_document_bytes: {limit:,}")
    return data


def _lines(unit: Unit) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of every line, without its end; None for one that is too long."""
    limit = unit.limits.max_line_bytes
    with _opened(unit, unit.url) as file:
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


def _too_long(unit: Unit) -> RowError:
    return RowError("line too long", f"more than max_line_bytes: {unit.limits.max_line_bytes:,}")


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = line[max(0, error.start - 20) : error.end + 20]
        raise RowError("broken UTF-8", f"byte {error.start + 1} of {shown!r}") from error


def read_header(unit: Unit) -> list[str]:
    """Column names in the first line of a TSV or CSV; none if it cannot be read, which its parser
    then says. Raises `ValueError` if it is not UTF-8, `SourceError`."""
    stream = SourceReader(unit.url)
    try:
        file = unpacked(stream, unit.url, unit.limits.max_unpacked_bytes)
        line = file.readline(unit.limits.max_line_bytes)
    except SourceError:
        raise
    except Exception:  # damaged: see above
        return []
    finally:
        stream.close()
    try:
        text = line.removeprefix(BOM).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{unit.shown}:1: the header is not UTF-8 text") from error
    if unit.format == "tsv":
        return text.split("\t")
    try:
        with _long_fields():
            return next(csv.reader([text]), [])
    except csv.Error as error:
        raise ValueError(f"{unit.shown}:1: the header is no line of CSV: {error}") from error


Values = dict[str, str | bytes | None]


def _files(unit: Unit) -> Iterator[Parsed]:
    """One row per file: its `path`, its `name` without ending and the name of its `folder`."""
    for shown, url in unit.files:
        path = PurePosixPath(url)
        facts = {"path": shown, "name": path.stem, "folder": path.parent.name}
        try:
            values = {
                # What is read is the file itself; what is shown does not depend on this machine.
                name: url if name in MEDIA and key == "path" else facts[str(key)]
                for name, key in unit.columns.items()
            }
        except KeyError as error:
            detail = f"{error}; files have path, name and folder"
            yield Parsed(0, reason="missing column", detail=detail, position=shown)
        else:
            yield Parsed(0, values, position=shown)


def _picture(cells: list[str], pixels: PixelsConfig) -> bytes:
    """A PNG of the numbers in some cells."""
    import cv2
    import numpy as np

    first, last = (int(end) for end in pixels.columns.split("-"))
    try:
        numbers = np.array([float(cell) for cell in cells[first - 1 : last]])
        grey = numbers.reshape(-1, pixels.width) * (255 / pixels.maximum)
    except ValueError as error:
        raise RowError("not pixels", f"columns {pixels.columns}: {error}") from error
    if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 255):
        raise RowError("not pixels", f"a number is not between 0 and {pixels.maximum}")
    encoded: bytes = cv2.imencode(".png", np.rint(grey).astype(np.uint8))[1].tobytes()
    return encoded


def _cells(cells: list[str], unit: Unit) -> Values:
    """Cells of a line by column: names as in the header, or numbers, counted from 1."""
    if unit.header is not None and len(cells) != len(unit.header):
        raise RowError("wrong number of columns", f"{len(cells)} instead of {len(unit.header)}")
    values: Values = {}
    if unit.pixels is not None:
        values["image"] = _picture(cells, unit.pixels)
    for name, column in unit.columns.items():
        if isinstance(column, int):
            index = column - 1
        elif unit.header is not None and column in unit.header:
            index = unit.header.index(column)
        else:
            index = len(cells)
        if index >= len(cells):
            there = f"; the header has {', '.join(unit.header)}" if unit.header else ""
            what = f"{column!r} of {len(cells)} columns{there}"
            raise RowError("missing column", what)
        values[name] = _content(name, cells[index]) if name in MEDIA else cells[index]
    return values


def _content(name: str, value: Any) -> Any:
    """The content that a cell of a modality holds itself, as bytes, or the value as it is."""
    try:
        held = MEDIA[name].held(value)
    except MediaError as error:
        raise RowError(error.reason, error.detail) from error
    return value if held is None else held


def _tsv(unit: Unit) -> Iterator[Parsed]:
    for number, line in _lines(unit):
        if unit.header is not None and number == 1:
            continue
        try:
            if line is None:
                raise _too_long(unit)
            yield Parsed(number, _cells(_decode(line).split("\t"), unit))
        except RowError as error:
            yield Parsed(number, reason=error.reason, detail=error.detail)


MOST_RESUMPTIONS = 100
"""Quotes without an end in one file, after each of which reading resumes in the next line."""


class _Lines:
    """The lines of a CSV for Python's reader, which asks for more while a quote is open."""

    def __init__(self, file: io.TextIOWrapper, limit: int) -> None:
        self.file, self.limit = file, limit
        self.pending: list[str] = []
        self.row: list[str] = []
        """Lines of the row that is being read."""
        self.size = 0
        self.number = 0
        """Of the last line that was given."""

    def __iter__(self) -> _Lines:
        return self

    def line(self) -> str:
        return self.pending.pop() if self.pending else self.file.readline(self.limit + 1)

    def __next__(self) -> str:
        line = self.line()
        if not line:
            if not self.row:
                raise StopIteration
            raise _OpenQuote
        if self.size + len(line) > self.limit:
            self.pending.append(line)
            raise _TooLong
        self.row.append(line)
        self.size += len(line)
        self.number += 1
        return line

    def begin(self) -> None:
        """A new row begins."""
        self.row, self.size = [], 0

    def resume(self) -> None:
        """Gives the lines again, but for the first of the row."""
        self.number -= len(self.row) - 1
        self.pending += self.row[:0:-1]

    def skip(self) -> bool:
        """Drops the rest of the row, of which nothing is kept; whether it has an end."""
        quoted = bool(self.row)  # A row of one line that is too long began outside of quotes.
        while True:
            line = self.line()
            if not line:
                return not quoted
            quoted ^= line.count('"') % 2 == 1
            if line.endswith(("\n", "\r")):
                self.number += 1
                if not quoted:
                    return True


class _OpenQuote(Exception):
    """The file ends inside a quote."""


class _TooLong(Exception):
    """A row has more characters than the limit."""


def _csv(unit: Unit) -> Iterator[Parsed]:
    with _long_fields(), _opened(unit, unit.url) as opened:
        file = io.TextIOWrapper(opened, "utf-8-sig", "surrogateescape", newline="")
        yield from _csv_rows(unit, _Lines(file, unit.limits.max_line_bytes))
        file.detach()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the csv module's own limit: lines have one."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _csv_rows(unit: Unit, lines: _Lines) -> Iterator[Parsed]:
    reader = csv.reader(lines)
    resumptions = 0
    while True:
        lines.begin()
        first = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Parsed(first, reason="broken CSV", detail=str(error))
            continue
        except _TooLong:
            reader = csv.reader(lines)
            long = _too_long(unit)
            yield Parsed(first, reason=long.reason, detail=long.detail)
            if not lines.skip():
                raise ValueError(f"the quote that opens in line {first} is never closed") from None
            continue
        except _OpenQuote:
            reader = csv.reader(lines)
            resumptions += 1
            if resumptions > MOST_RESUMPTIONS:
                raise ValueError(f"more than {MOST_RESUMPTIONS} quotes are never closed") from None
            detail = "a quote that opens in this line is never closed"
            yield Parsed(first, reason="broken CSV", detail=detail)
            lines.resume()
            continue
        if unit.header is not None and first == 1:
            continue
        try:
            if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
                raise RowError("broken UTF-8", " | ".join(cells)[:200])
            yield Parsed(first, _cells(cells, unit))
        except RowError as error:
            yield Parsed(first, reason=error.reason, detail=error.detail)


def _select(record: Any, unit: Unit) -> Values:
    """Values at dotted paths of a JSON record; files in Parquet as their bytes."""
    values: Values = {}
    for name, path in unit.columns.items():
        value = record
        for key in str(path).split("."):
            if not isinstance(value, dict) or key not in value:
                raise RowError("missing column", f"{path!r}")
            value = value[key]
        if name in MEDIA:
            if isinstance(value, dict):
                value = value.get("bytes") or value.get("path")  # as Hugging Face datasets has them
            value = _content(name, value)
            if isinstance(value, bytes):
                values[name] = value
                continue
        if name in ROW_COLUMNS and not isinstance(value, (str, int, type(None))):
            raise RowError("not text", f"{path!r} is {type(value).__name__}")
        written = _as_text(value)
        values[name] = written
        try:
            (written or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError("broken UTF-8", f"{path!r} holds half a surrogate pair") from error
    return values


def _as_text(value: Any) -> str | None:
    """A value of JSON or Parquet as text: dates and times as ISO 8601, decimals with all digits,
    durations in seconds, bytes in base64, lists and structures as JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (date, datetime, time, Decimal, timedelta, bytes)):
        return str(_plain(value))
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (ValueError, RecursionError, TypeError) as error:
        raise RowError("not text", f"{type(value).__name__}: {error}") from error


def _plain(value: Any) -> str | float:
    """What JSON has no type for."""
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def _record(number: int, record: Any, unit: Unit) -> Iterator[Parsed]:
    """One record, or one row for each element of the list at `explode`."""
    elements = [record]
    if unit.explode is not None:
        listed = record.get(unit.explode) if isinstance(record, dict) else None
        if not isinstance(listed, list):
            yield Parsed(number, reason="missing column", detail=f"{unit.explode!r} is not a list")
            return
        elements = [{**record, unit.explode: element} for element in listed]
    for element in elements:
        try:
            yield Parsed(number, _select(element, unit))
        except RowError as error:
            yield Parsed(number, reason=error.reason, detail=error.detail)


def _jsonl(unit: Unit) -> Iterator[Parsed]:
    for number, line in _lines(unit):
        try:
            if line is None:
                raise _too_long(unit)
            text = _decode(line)
        except RowError as error:
            yield Parsed(number, reason=error.reason, detail=error.detail)
        else:
            yield from _json_record(number, text, unit)


def _json_record(number: int, text: str, unit: Unit) -> Iterator[Parsed]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield Parsed(number, reason="broken JSON", detail=str(error))
    else:
        yield from _record(number, record, unit)


JSON_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{},"]', re.DOTALL)
"""A string, which never has to be tried again, a sign, or the quote of a string without an end."""


def _json(unit: Unit) -> Iterator[Parsed]:
    """A JSON array of records; "lines" count the records. Each is parsed alone, so that a bad one
    is one reject."""
    data = _document(unit, unit.url)
    text = data.decode(json.detect_encoding(data)).strip()
    if not text.startswith("["):
        raise ValueError("a .json file must be a list of records; for one per line, format: jsonl")
    if not text.endswith("]"):
        raise ValueError("the list of records has no end")
    for number, element in enumerate(_elements(text), start=1):
        yield from _json_record(number, element, unit)


def _elements(text: str) -> Iterator[str]:
    """The text of each element of a JSON array, found by its brackets and commas."""
    depth, start = 0, 1
    for token in JSON_TOKEN.finditer(text):
        sign = text[token.start()]
        if sign == '"':
            if token.end() == token.start() + 1:
                raise ValueError(f"the string at character {token.start() + 1} has no end")
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
            if depth == 0:
                last = text[start : token.start()].strip()
                if last or start > 1:
                    yield last
                if token.end() != len(text):
                    raise ValueError("there is more after the end of the list")
                return
        elif sign == "," and depth == 1:
            yield text[start : token.start()]
            start = token.end()
    raise ValueError("the list of records has no end")


MOST_GROUP_BYTES = 1 << 30
"""Largest row group of a Parquet file, unpacked."""
RECORDS_AT_ONCE = 1000


def _parquet(unit: Unit) -> Iterator[Parsed]:
    import pyarrow.parquet as parquet

    roots = {str(path).partition(".")[0] for path in unit.columns.values()}
    roots |= {unit.explode} if unit.explode else set()
    with _random_access(unit, unit.url) as file:
        table = parquet.ParquetFile(file)
        present = [name for name in table.schema_arrow.names if name in roots]
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).total_byte_size
            if size > MOST_GROUP_BYTES:
                raise TooLargeError(f"row group {group + 1} has {size:,} bytes")
        number = 0
        for batch in table.iter_batches(batch_size=RECORDS_AT_ONCE, columns=present):
            for record in _records(batch):
                number += 1
                if isinstance(record, RowError):
                    yield Parsed(number, reason=record.reason, detail=record.detail)
                else:
                    yield from _record(number, record, unit)


def _records(batch: Any) -> Iterator[Any]:
    """The rows of a batch; a `RowError` for one with a value that Python does not have, such as a
    time after the year 9999."""
    try:
        yield from batch.to_pylist()
        return
    except Exception:  # one of them; nothing was given yet
        pass
    for number in range(len(batch)):
        try:
            (record,) = batch.slice(number, 1).to_pylist()
        except Exception as error:  # whatever the types' conversions raise
            yield RowError("no such value", f"{type(error).__name__}: {error}")
        else:
            yield record


@contextmanager
def _random_access(unit: Unit, url: str) -> Iterator[SourceReader]:
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


def _gettext(unit: Unit) -> Iterator[Parsed]:
    """Entries of catalogues of several languages, joined by their message id.

    A column is a language, whose catalogue is read, or `msgid`, the original. Of plural entries,
    the singular is used.
    """
    catalogues = {language: _catalogue(unit, url) for language, url in unit.pairs.items()}
    base = next(iter(catalogues.values()))
    for key, (line, original, _, _) in base.items():
        values: Values = {}
        try:
            for name, language in unit.columns.items():
                if language == "msgid":
                    values[name] = original
                    continue
                entry = catalogues[str(language)].get(key)
                if entry is None or not entry[2]:
                    raise RowError("untranslated", f"no {language} for {original!r}")
                if entry[3]:
                    raise RowError("fuzzy", f"the {language} of {original!r} is marked fuzzy")
                values[name] = entry[2]
        except RowError as error:
            yield Parsed(line, reason=error.reason, detail=error.detail)
        else:
            yield Parsed(line, values)


def _catalogue(unit: Unit, url: str) -> dict[tuple[str, str], tuple[int, str, str, bool]]:
    """(context, msgid) to (line, msgid, translation, fuzzy)."""
    import polib

    data = _document(unit, url)
    if url.endswith(".mo"):
        with tempfile.NamedTemporaryFile(suffix=".mo") as copy:
            copy.write(data)
            copy.flush()
            entries = polib.mofile(copy.name)
    else:
        entries = polib.pofile(data.decode("utf-8"))
    catalogue = {}
    for number, entry in enumerate(entries, start=1):
        if entry.obsolete or not entry.msgid:
            continue
        translated = entry.msgstr or entry.msgstr_plural.get(0, "")
        line = getattr(entry, "linenum", None) or number
        fuzzy = bool(getattr(entry, "fuzzy", False))
        catalogue[entry.msgctxt or "", entry.msgid] = (line, entry.msgid, translated, fuzzy)
    return catalogue
