"""Parsers of data files into rows of text. A bad line becomes a reject; it never stops a file.

Every parser yields `Parsed` values: the selected columns as strings, or why the row was rejected,
with the number of the line (of the record, if the format has no lines) it came from.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from model.modalities.known import MEDIA
from model.modalities.media import MediaError
from pipelines.store.sources import open_binary
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


class RowError(ValueError):
    """A row that cannot be used: a reason that is counted, and a detail for the user."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


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
class Unit:
    """A piece of a file that one worker parses, and what is done with its rows."""

    url: str
    shown: str
    format: Format
    columns: Columns
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
    files: list[tuple[str, str]] = field(default_factory=list)
    """For files: the name and the URL of each."""
    pixels: PixelsConfig | None = None
    """For TSV and CSV: which cells make up a picture, see `stages.ingest.options.PixelsConfig`."""


def parse(unit: Unit) -> Iterator[Parsed]:
    """All rows of a unit."""
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
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        # The whole file, or all of it after this point, is damaged: it counts as one reject.
        yield Parsed(0, reason="unreadable file", detail=f"{type(error).__name__}: {error}")


def _lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    with open_binary(unit.url) as file:
        file.seek(unit.start)
        data = file.read() if unit.end is None else file.read(unit.end - unit.start)
    if unit.start == 0:
        data = data.removeprefix(BOM)
    if data.endswith(b"\n"):
        data = data[:-1]
    elif not data:
        return
    for offset, line in enumerate(data.split(b"\n")):
        yield unit.line + offset, line.removesuffix(b"\r")


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = line[max(0, error.start - 20) : error.end + 20]
        raise RowError("broken UTF-8", f"byte {error.start + 1} of {shown!r}") from error


def header_names(line: bytes, format: Format, shown: str) -> list[str]:
    """Column names in the first line of a TSV or CSV. Raises `ValueError` if it is not UTF-8."""
    try:
        text = line.removeprefix(BOM).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown}:1: the header is not UTF-8 text") from error
    return text.split("\t") if format == "tsv" else next(csv.reader([text]), [])


Values = dict[str, str | bytes | None]


def media_url(table: str, locator: str) -> str:
    """URL of a picture or sound that a table names: paths are relative to the table's folder."""
    if "://" in locator or locator.startswith("/"):
        return locator
    return f"{table.rpartition('/')[0]}/{locator}"


def _files(unit: Unit) -> Iterator[Parsed]:
    """One row per file: its `path`, its `name` without ending and the name of its `folder`."""
    for shown, url in unit.files:
        path = PurePosixPath(url)
        facts = {"path": url, "name": path.stem, "folder": path.parent.name}
        try:
            values = {name: facts[str(key)] for name, key in unit.columns.items()}
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
            raise RowError("missing column", f"{column!r} of {len(cells)} columns")
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
            yield Parsed(number, _cells(_decode(line).split("\t"), unit))
        except RowError as error:
            yield Parsed(number, reason=error.reason, detail=error.detail)


def _csv(unit: Unit) -> Iterator[Parsed]:
    with open_binary(unit.url) as file:
        data = file.read().removeprefix(BOM)
    reader = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    before = 0
    limit = csv.field_size_limit(2**31 - 1)
    try:
        while True:
            before = reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Parsed(before + 1, reason="broken CSV", detail=str(error))
                continue
            if unit.header is not None and before == 0:
                continue
            try:
                if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
                    raise RowError("broken UTF-8", " | ".join(cells))
                yield Parsed(before + 1, _cells(cells, unit))
            except RowError as error:
                yield Parsed(before + 1, reason=error.reason, detail=error.detail)
    finally:
        csv.field_size_limit(limit)


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
        plain = value is None or isinstance(value, str)
        written: str | None = value if plain else json.dumps(value, ensure_ascii=False)
        values[name] = written
        try:
            (written or "").encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError("broken UTF-8", f"{path!r} holds half a surrogate pair") from error
    return values


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
            record = json.loads(_decode(line))
        except RowError as error:
            yield Parsed(number, reason=error.reason, detail=error.detail)
        except (ValueError, RecursionError) as error:
            yield Parsed(number, reason="broken JSON", detail=str(error))
        else:
            yield from _record(number, record, unit)


def _json(unit: Unit) -> Iterator[Parsed]:
    """A JSON array of records; "lines" count the records."""
    with open_binary(unit.url) as file:
        records = json.loads(file.read())
    if not isinstance(records, list):
        raise ValueError("a .json file must be a list of records; for one per line, format: jsonl")
    for number, record in enumerate(records, start=1):
        yield from _record(number, record, unit)


def _parquet(unit: Unit) -> Iterator[Parsed]:
    import pyarrow.parquet as parquet

    roots = {str(path).partition(".")[0] for path in unit.columns.values()}
    roots |= {unit.explode} if unit.explode else set()
    with open_binary(unit.url) as file:
        table = parquet.ParquetFile(file)
        present = [name for name in table.schema_arrow.names if name in roots]
        number = 0
        for batch in table.iter_batches(columns=present):
            for record in batch.to_pylist():
                number += 1
                yield from _record(number, record, unit)


def _gettext(unit: Unit) -> Iterator[Parsed]:
    """Entries of catalogues of several languages, joined by their message id.

    A column is a language, whose catalogue is read, or `msgid`, the original. Of plural entries,
    the singular is used.
    """
    catalogues = {language: _catalogue(url) for language, url in unit.pairs.items()}
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


def _catalogue(url: str) -> dict[tuple[str, str], tuple[int, str, str, bool]]:
    """(context, msgid) to (line, msgid, translation, fuzzy)."""
    import polib

    with open_binary(url) as file:
        data = file.read()
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
