"""The files of the sources, and the pieces of them that workers parse."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fsspec.utils import infer_compression

from model.modalities.known import MEDIA
from pipelines.store.remembered import REFUSED
from pipelines.store.sources import (
    NamedFiles,
    Outside,
    SourceFile,
    file_size,
    find_files,
    line_ranges,
    local_path,
    source_changed,
)
from stages.ingest.delimited import read_header
from stages.ingest.errors import RowError
from stages.ingest.formats import SPLITTABLE, changed, infer_format, parse
from stages.ingest.locating import Places, allowed_places
from stages.ingest.opened import Format, Limits, Unit
from stages.ingest.options import IngestConfig, SourceConfig, Split

RANGE_BYTES = 16_000_000
"""Bytes of a file that one worker parses at a time."""
FILES_AT_ONCE = 500
"""Files, each a row, that one worker reads at a time."""
UNPACKED = 5
"""About how much larger text is that was compressed."""


def outside_files(config: IngestConfig, base: Path) -> Iterator[tuple[str, Outside]]:
    """Every file that the records depend on: tables, and the files of modalities that they name."""
    sources = [config, *config.also]
    tables = [SourceFile(file[1], file[2]) for source in sources for file in _files(source, base)]
    yield from ((table.shown, table) for table in tables)
    if any(MEDIA.keys() & source.columns.keys() for source in sources):
        options = config.model_dump_json()
        yield (
            "media",
            NamedFiles(tables, options, lambda: named_files(config, base), config.max_file_bytes),
        )


def named_files(config: IngestConfig, base: Path) -> list[SourceFile]:
    """All files that rows name, in order; of those that may not be named, the reason."""
    files: dict[str, SourceFile] = {}
    for unit in list_units(config, base):
        if unit.format == "files":
            continue  # each is a source file by itself
        for parsed in parse(unit):
            try:
                values = changed(parsed.values, unit)
            except RowError:
                continue
            for name in MEDIA:
                value = values.get(name)
                if isinstance(value, str) and value:
                    shown = shown_name(unit, value)
                    if shown not in files:
                        files[shown] = SourceFile(shown, _place(unit, value))
    return list(files.values())


def _place(unit: Unit, locator: str) -> str:
    """The URL of a file that a row names, or why it may not be named."""
    try:
        return unit.places.url(locator)
    except RowError as error:
        return f"{REFUSED}{error.reason}"


def shown_name(unit: Unit, locator: str) -> str:
    """The name of a file that a row names: from where the table's name starts, so that it is the
    same on every machine."""
    if locator.startswith("/") or "://" in locator:
        return locator
    return posixpath.join(posixpath.dirname(unit.shown), locator)


def _files(source: SourceConfig, base: Path) -> Iterator[tuple[Split | None, str, str]]:
    """(declared split, name as shown, URL) of every file of a source."""
    for split, pattern in source.listed():
        if LANGUAGE in pattern:
            languages = [str(c) for c in source.columns.values() if c != "msgid"]
            for language in dict.fromkeys(languages):
                for file in find_files(pattern.replace(LANGUAGE, language), base):
                    yield split, file.shown, file.url
        else:
            for file in find_files(pattern, base):
                yield split, file.shown, file.url


def list_units(
    config: IngestConfig, base: Path, digests: Mapping[str, str] | None = None
) -> list[Unit]:
    """The pieces of files to parse, numbered in the order the user gave.

    Args:
        digests: the digest that each file must have, by its name as shown; unknown ones are not
            compared.

    Raises `SourceError` if a file has another.
    """
    expected = digests or {}
    units: list[Unit] = []
    limits = Limits(config.max_line_bytes, config.max_document_bytes, config.max_unpacked_bytes)
    for source in [config, *config.also]:
        allowed = allowed_places(source.allow, base)
        files: dict[Split | None, list[tuple[str, str]]] = {}
        for split, shown, url, pairs in _catalogues(source, base):
            format = source.format or infer_format(shown)
            if format == "files":
                files.setdefault(split, []).append((shown, url))
                continue
            links = {**dict(pairs.values()), shown: url}
            whole = replace(
                _unit(source, url, shown, format, split, source is not config),
                explode=source.explode,
                pixels=source.pixels,
                pairs={language: link for language, (_, link) in pairs.items()},
                digests={link: expected[name] for name, link in links.items() if name in expected},
                places=Places(_folder(url), allowed),
                limits=limits,
            )
            units += _pieces(whole, source)
        for split, listed in files.items():
            for start in range(0, len(listed), FILES_AT_ONCE):
                part = tuple(listed[start : start + FILES_AT_ONCE])
                (shown, url), size = part[0], 1000 * len(part)
                rows = _unit(source, url, shown, "files", split, source is not config)
                units.append(replace(rows, files=part, bytes=size))
    return [replace(piece, number=number) for number, piece in enumerate(units)]


def _unit(
    source: SourceConfig, url: str, shown: str, format: Format, split: Split | None, extra: bool
) -> Unit:
    """What all units of a source have."""
    return Unit(
        url=url,
        shown=shown,
        format=format,
        columns=source.columns,
        split=split,
        extra=extra,
        constants=source.constants,
        judges=source.judge,
        extract=source.extract,
        replace=source.replace,
        reject=source.reject,
    )


def _pieces(whole: Unit, source: SourceConfig) -> Iterator[Unit]:
    """A file in pieces, if its format can be cut at line ends."""
    delimited = whole.format in ("tsv", "csv") and source.header
    if delimited:
        whole = replace(whole, header=read_header(whole))
    packed = infer_compression(whole.url) is not None
    if whole.format not in SPLITTABLE or packed:
        size = file_size(whole.url) or 0
        packed |= whole.format == "parquet"
        yield replace(whole, bytes=size * UNPACKED if packed else size)
        return
    ranges, digest = line_ranges(whole.url, RANGE_BYTES)
    if whole.digests.get(whole.url, digest) != digest:
        raise source_changed(whole.shown)
    if not ranges:
        yield replace(whole, end=0)  # An empty file: without a row, but named.
    for part in ranges:
        yield replace(
            whole,
            start=part.start,
            end=part.end,
            line=part.line,
            digests={whole.url: part.digest},
            bytes=part.end - part.start,
        )


def _folder(url: str) -> str:
    """The folder of a file: a path, or a URL."""
    path = local_path(url)
    return url.rpartition("/")[0] if path is None else str(path.parent)


def _catalogues(
    source: SourceConfig, base: Path
) -> Iterator[tuple[Split | None, str, str, dict[str, tuple[str, str]]]]:
    """Files of a source; for gettext, each catalogue of the first language with the others', by
    language: name as shown and URL."""
    languages = list(dict.fromkeys(str(c) for c in source.columns.values() if c != "msgid"))
    for split, pattern in source.listed():
        if LANGUAGE not in pattern:
            for file in find_files(pattern, base):
                own = {next(iter(languages), ""): (file.shown, file.url)}
                yield split, file.shown, file.url, own
            continue
        sets: dict[tuple[str, ...], dict[str, tuple[str, str]]] = {}
        for language in languages:
            for file in find_files(pattern.replace(LANGUAGE, language), base):
                key = _wildcards(pattern.replace(LANGUAGE, language), file.shown)
                sets.setdefault(key, {})[language] = (file.shown, file.url)
        for catalogues in sets.values():
            if len(catalogues) == len(languages):
                yield split, *catalogues[languages[0]], catalogues


LANGUAGE = "{language}"
WILDCARD = re.compile(r"\*\*/?|\*|\?|\[[^\]]*\]")


def _wildcards(pattern: str, shown: str) -> tuple[str, ...]:
    """What the wildcards of a pattern stand for in the name of a file that it matches: the same for
    the catalogues of all languages that belong together."""
    parts, end = [], 0
    for sign in WILDCARD.finditer(pattern):
        inside = ".*" if sign[0].startswith("**") else "[^/]*" if sign[0] == "*" else "."
        parts += [re.escape(pattern[end : sign.start()]), f"({inside})"]
        end = sign.end()
    match = re.fullmatch("".join([*parts, re.escape(pattern[end:])]), shown)
    return match.groups() if match else ()
