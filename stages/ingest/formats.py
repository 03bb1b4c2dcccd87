"""Parsers of data files into rows of text. A bad line becomes a reject; it never stops a file.

Every parser yields `Parsed` values: the selected columns as strings, or why the row was rejected,
with the number of the line (of the record, if the format has no lines) it came from. Files are read
as streams, a line at a time, and what was read is compared with the digest that was planned with.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath

from model.modalities.known import MEDIA
from pipelines.store.sources import SourceError
from stages.ingest.delimited import csv_rows, tsv_rows
from stages.ingest.errors import RowError
from stages.ingest.opened import Format, Parsed, Unit, Values, document
from stages.ingest.structured import json_rows, jsonl_rows, parquet_rows

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
        "tsv": tsv_rows,
        "csv": csv_rows,
        "jsonl": jsonl_rows,
        "json": json_rows,
        "parquet": parquet_rows,
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

    data = document(unit, url)
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
