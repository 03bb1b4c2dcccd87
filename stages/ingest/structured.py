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
    if unit.explode is None:
        yield _row(number, record, unit)
        return
    listed = record.get(unit.explode) if isinstance(record, dict) else None
    if not isinstance(listed, list):
        yield Parsed(number, reason="missing column", detail=f"{unit.explode!r} is not a list")
        return
    # Every row has what the whole record has: all together can be thousands of times its size.
    size, limit = 0, unit.limits.max_document_bytes
    for row in _exploded(number, record, listed, unit):
        size += ROW_BYTES + sum(len(value) for value in row.values.values() if value)
        if size > limit:
            detail = f"its {len(listed):,} rows have more than max_document_bytes: {limit:,}"
            yield Parsed(number, reason="record too large", detail=detail)
            return
    yield from _exploded(number, record, listed, unit)


def _exploded(
    number: int, record: dict[str, Any], listed: list[Any], unit: Unit
) -> Iterator[Parsed]:
    one = dict(record)
    for element in listed:
        one[str(unit.explode)] = element
        yield _row(number, one, unit)


def _row(number: int, record: Any, unit: Unit) -> Parsed:
    try:
        return Parsed(number, _select(record, unit))
    except RowError as error:
        return Parsed(number, reason=error.reason, detail=error.detail)


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
        if len(element) > unit.limits.max_line_bytes:
            long = too_long(unit)
            yield Parsed(number, reason=long.reason, detail=long.detail)
        else:
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
RECORDS_AT_ONCE, BATCH_BYTES = 1000, 64_000_000
"""The most rows, and about the most bytes, of a Parquet file that are read at a time."""
PYTHON_BYTES = 16_000_000
"""About the bytes of records that are Python objects at a time."""
ROW_BYTES = 100
"""What a row takes beside its values."""


def parquet_rows(unit: Unit) -> Iterator[Parsed]:
    import pyarrow.parquet as parquet

    roots = {str(path).partition(".")[0] for path in unit.columns.values()}
    roots |= {unit.explode} if unit.explode else set()
    with random_access(unit, unit.url) as file:
        whole = parquet.ParquetFile(file)
        present = [name for name in whole.schema_arrow.names if name in roots]
        leaves = [whole.schema.column(number) for number in range(len(whole.schema.names))]
        read = {n: leaf for n, leaf in enumerate(leaves) if leaf.path.split(".")[0] in present}
        sizes: list[int] = []
        for group in range(whole.num_row_groups):
            facts = whole.metadata.row_group(group)
            columns = {n: facts.column(n) for n in read}
            # The size is that of values as they are encoded: the same ones are there only once.
            size = sum(
                column.total_uncompressed_size + column.num_values * max(8, read[n].length)
                for n, column in columns.items()
            )
            if size > MOST_GROUP_BYTES:
                raise TooLargeError(f"row group {group + 1} can have {size:,} bytes")
            sizes.append(size)
        # So they stay what they are in the file: numbers of entries in a dictionary.
        texts = [leaf.path for leaf in read.values() if leaf.physical_type == "BYTE_ARRAY"]
        table = parquet.ParquetFile(file, read_dictionary=texts, metadata=whole.metadata)
        number, weight, limit = 0, 0, unit.limits.max_unpacked_bytes
        # Group by group: Arrow cannot join the dictionaries of two groups inside structures.
        for batch in (
            batch
            for group, size in enumerate(sizes)
            for batch in table.iter_batches(
                _at_once(whole.metadata.row_group(group).num_rows, size), [group], present
            )
        ):
            for record in _records(batch, unit.limits.max_document_bytes):
                number += 1
                if isinstance(record, RowError):
                    yield Parsed(number, reason=record.reason, detail=record.detail)
                    continue
                for row in _record(number, record, unit):
                    weight += sum(len(value) for value in row.values.values() if value)
                    if weight > limit:  # a few bytes can stand for any number of rows
                        raise TooLargeError(
                            f"its rows have more than max_unpacked_bytes: {limit:,}"
                        )
                    yield row


def _at_once(rows: int, size: int) -> int:
    """How many of a group's rows are read at a time."""
    return max(1, min(RECORDS_AT_ONCE, rows * BATCH_BYTES // max(1, size)))


def _records(batch: Any, limit: int) -> Iterator[Any]:
    """The rows of a batch, some at a time; a `RowError` for one that would have more than `limit`
    bytes, or has a value that Python does not have, such as a time after the year 9999."""
    step = max(1, len(batch) * PYTHON_BYTES // max(1, _expanded(batch)))
    for start in range(0, len(batch), step):
        part = batch.slice(start, step)
        if len(part) == 1 and (size := _expanded(part)) > limit:
            yield RowError("record too large", f"{size:,} bytes, max_document_bytes: {limit:,}")
            continue
        try:
            yield from part.to_pylist()
            continue
        except Exception:  # one of them; nothing was given yet
            pass
        for number in range(len(part)):
            try:
                (record,) = part.slice(number, 1).to_pylist()
            except Exception as error:  # whatever the types' conversions raise
                yield RowError("no such value", f"{type(error).__name__}: {error}")
            else:
                yield record


def _expanded(values: Any) -> int:
    """The most bytes that a batch or an array has when each value stands for itself."""
    import pyarrow as pa
    from pyarrow import compute

    if isinstance(values, pa.RecordBatch):
        return sum(map(_expanded, values.columns))
    if isinstance(values, pa.StructArray):
        return sum(map(_expanded, values.flatten()))
    if pa.types.is_nested(values.type):  # lists and maps
        return 8 * len(values) + _expanded(values.flatten())
    if isinstance(values, pa.DictionaryArray):
        lengths = compute.binary_length(values.dictionary).take(values.indices)
        return 8 * len(values) + int(compute.sum(lengths).as_py() or 0)
    return int(values.nbytes) + 8 * len(values)
