"""JSON, JSON lines and Parquet as rows: records, whose values are found by dotted paths."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from model.modalities.known import MEDIA
from pipelines.store.sources import TooLargeError
from stages.ingest.errors import RowError
from stages.ingest.opened import (
    Parsed,
    Unit,
    Values,
    content,
    decode,
    document,
    lines,
    random_access,
    too_long,
)
from stages.ingest.options import ROW_COLUMNS


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
            value = content(name, value)
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


def jsonl_rows(unit: Unit) -> Iterator[Parsed]:
    for number, line in lines(unit):
        try:
            if line is None:
                raise too_long(unit)
            text = decode(line)
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


def json_rows(unit: Unit) -> Iterator[Parsed]:
    """A JSON array of records; "lines" count the records. Each is parsed alone, so that a bad one
    is one reject."""
    data = document(unit, unit.url)
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


def parquet_rows(unit: Unit) -> Iterator[Parsed]:
    import pyarrow.parquet as parquet

    roots = {str(path).partition(".")[0] for path in unit.columns.values()}
    roots |= {unit.explode} if unit.explode else set()
    with random_access(unit, unit.url) as file:
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
