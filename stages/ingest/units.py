"""The files of the sources, and the pieces of them that workers parse."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from model.modalities.known import MEDIA
from pipelines.store.sources import (
    NamedFiles,
    Outside,
    SourceError,
    SourceFile,
    file_size,
    find_files,
    line_ranges,
    local_path,
)
from stages.ingest.errors import RowError
from stages.ingest.formats import (
    COMPRESSED,
    SPLITTABLE,
    Limits,
    Unit,
    infer_format,
    parse,
    read_header,
)
from stages.ingest.locating import Places, allowed_places
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
    """All files that rows name, in order. What a row may not name becomes a reject later."""
    files: dict[str, SourceFile] = {}
    for unit in list_units(config, base):
        if unit.format == "files":
            continue  # each is a source file by itself
        for parsed in parse(unit):
            for name in MEDIA:
                value = parsed.values.get(name)
                if isinstance(value, str) and value:
                    try:
                        url = unit.places.url(value)
                    except RowError:
                        continue
                    shown = shown_name(unit, value)
                    files.setdefault(shown, SourceFile(shown, url))
    return list(files.values())


def shown_name(unit: Unit, locator: str) -> str:
    """The name of a file that a row names: from where the table's name starts, so that it is the
    same on every machine."""
    if locator.startswith("/") or "://" in locator:
        return locator
    return posixpath.join(posixpath.dirname(unit.shown), locator)


def _files(source: SourceConfig, base: Path) -> Iterator[tuple[Split | None, str, str]]:
    """(declared split, name as shown, URL) of every file of a source."""
    for split, pattern in source.listed():
        if "{language}" in pattern:
            languages = [str(c) for c in source.columns.values() if c != "msgid"]
            for language in dict.fromkeys(languages):
                for file in find_files(pattern.replace("{language}", language), base):
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
            whole = Unit(
                url=url,
                shown=shown,
                format=format,
                columns=source.columns,
                split=split,
                extra=source is not config,
                extract=source.extract,
                replace=source.replace,
                reject=source.reject,
                explode=source.explode,
                pixels=source.pixels,
                pairs={language: link for language, (_, link) in pairs.items()},
                digests={link: expected[name] for name, link in links.items() if name in expected},
                places=Places(_folder(url), allowed),
                limits=limits,
            )
            units += _pieces(whole, source)
        for split, listed in files.items():
            roots = (*allowed, *(_root(pattern, base) for _, pattern in source.listed()))
            for start in range(0, len(listed), FILES_AT_ONCE):
                part = tuple(listed[start : start + FILES_AT_ONCE])
                units.append(
                    Unit(
                        url=part[0][1],
                        shown=part[0][0],
                        format="files",
                        columns=source.columns,
                        split=split,
                        extra=source is not config,
                        extract=source.extract,
                        replace=source.replace,
                        reject=source.reject,
                        files=part,
                        places=Places(_folder(part[0][1]), roots),
                        bytes=1000 * len(part),
                    )
                )
    return [replace(piece, number=number) for number, piece in enumerate(units)]


def _pieces(whole: Unit, source: SourceConfig) -> Iterator[Unit]:
    """A file in pieces, if its format can be cut at line ends."""
    delimited = whole.format in ("tsv", "csv") and source.header
    if delimited:
        whole = replace(whole, header=read_header(whole))
    if whole.format not in SPLITTABLE or whole.shown.endswith(COMPRESSED):
        size = file_size(whole.url) or 0
        packed = whole.shown.endswith(COMPRESSED) or whole.format == "parquet"
        yield replace(whole, bytes=size * UNPACKED if packed else size)
        return
    ranges, digest = line_ranges(whole.url, RANGE_BYTES)
    if whole.digests.get(whole.url, digest) != digest:
        raise SourceError(f"{whole.shown} has changed since it was read for the plan; run again")
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


def _root(pattern: str, base: Path) -> str:
    """The folder in which a pattern looks for files: its part before the first wildcard."""
    fixed = pattern
    for sign in "*?[":
        fixed = fixed.partition(sign)[0]
    path = local_path(fixed)
    if path is None:
        return fixed.rpartition("/")[0]
    return str((base / path).parent if fixed == pattern else base / fixed.rpartition("/")[0])


def _catalogues(
    source: SourceConfig, base: Path
) -> Iterator[tuple[Split | None, str, str, dict[str, tuple[str, str]]]]:
    """Files of a source; for gettext, each catalogue of the first language with the others', by
    language: name as shown and URL."""
    if not any("{language}" in pattern for _, pattern in source.listed()):
        for split, shown, url in _files(source, base):
            language = next((str(c) for c in source.columns.values() if c != "msgid"), "")
            yield split, shown, url, {language: (shown, url)}
        return
    languages = list(dict.fromkeys(str(c) for c in source.columns.values() if c != "msgid"))
    for split, pattern in source.listed():
        for file in find_files(pattern.replace("{language}", languages[0]), base):
            catalogues = {languages[0]: (file.shown, file.url)}
            for other in languages[1:]:
                shown, url = (
                    name.replace(f"/{languages[0]}/", f"/{other}/")
                    for name in (file.shown, file.url)
                )
                if "://" in url or Path(url).exists():
                    catalogues[other] = (shown, url)
            if len(catalogues) == len(languages):
                yield split, file.shown, file.url, catalogues
