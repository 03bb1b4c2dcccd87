"""TSV and CSV as rows: cells in columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager

from model.modalities.known import MEDIA
from pipelines.store.sources import SourceError, SourceReader, unpacked
from stages.ingest.errors import RowError
from stages.ingest.opened import BOM, Parsed, Unit, Values, content, decode, lines, opened, too_long
from stages.ingest.options import PixelsConfig


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
            there = f"; the header has {_names(unit.header)}" if unit.header else ""
            what = f"{column!r} of {len(cells)} columns{there}"
            raise RowError("missing column", what)
        values[name] = content(name, cells[index]) if name in MEDIA else cells[index]
    return values


def _names(header: list[str]) -> str:
    """The first of some names: a header can have megabytes."""
    more = f" and {len(header) - 12} more" if len(header) > 12 else ""
    return ", ".join(name[:40] for name in header[:12]) + more


def tsv_rows(unit: Unit) -> Iterator[Parsed]:
    for number, line in lines(unit):
        if unit.header is not None and number == 1:
            continue
        try:
            if line is None:
                raise too_long(unit)
            yield Parsed(number, _cells(decode(line).split("\t"), unit))
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


def csv_rows(unit: Unit) -> Iterator[Parsed]:
    with _long_fields(), opened(unit, unit.url) as raw:
        file = io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")
        yield from _parsed(unit, _Lines(file, unit.limits.max_line_bytes))
        file.detach()


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the csv module's own limit: lines have one."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _parsed(unit: Unit, lines: _Lines) -> Iterator[Parsed]:
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
            long = too_long(unit)
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
