"""The files of the sources, and the pieces of them that workers parse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from model.modalities.known import MEDIA
from pipelines.store.sources import (
    NamedFiles,
    Outside,
    SourceFile,
    find_files,
    first_line,
    line_ranges,
)
from stages.ingest.formats import (
    COMPRESSED,
    SPLITTABLE,
    Format,
    Unit,
    header_names,
    infer_format,
    media_url,
    parse,
)
from stages.ingest.options import IngestConfig, SourceConfig, Split

RANGE_BYTES = 16_000_000
"""Bytes of a file that one worker parses at a time."""
FILES_AT_ONCE = 500
"""Files, each a row, that one worker reads at a time."""


def outside_files(config: IngestConfig, base: Path) -> Iterator[tuple[str, Outside]]:
    """Every file that the records depend on: tables, and the files of modalities that they name."""
    sources = [config, *config.also]
    tables = [SourceFile(file[1], file[2]) for source in sources for file in _files(source, base)]
    yield from ((table.shown, table) for table in tables)
    if any(MEDIA.keys() & source.columns.keys() for source in sources):
        options = config.model_dump_json()
        yield "media", NamedFiles(tables, options, lambda: _media_files(config, base))


def _media_files(config: IngestConfig, base: Path) -> list[str]:
    """URLs of all files that tables name, in order."""
    urls: dict[str, None] = {}
    for unit in list_units(config, base):
        if unit.format == "files":
            continue  # each is a source file by itself
        for parsed in parse(unit):
            for name in MEDIA:
                value = parsed.values.get(name)
                if isinstance(value, str) and value:
                    urls[media_url(unit.url, value)] = None
    return list(urls)


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


def list_units(config: IngestConfig, base: Path) -> list[Unit]:
    """The pieces of files to parse, numbered in the order the user gave."""
    units: list[Unit] = []
    for source in [config, *config.also]:

        def unit(
            url: str, shown: str, format: Format, split: Split | None, source: SourceConfig = source
        ) -> Unit:
            return Unit(
                url,
                shown,
                format,
                source.columns,
                split=split,
                extra=source is not config,
                extract=source.extract,
                replace=source.replace,
                reject=source.reject,
                explode=source.explode,
                pixels=source.pixels,
            )

        files: dict[Split | None, list[tuple[str, str]]] = {}
        for split, shown, url, pairs in _catalogues(source, base):
            format = source.format or infer_format(shown)
            if format == "files":
                files.setdefault(split, []).append((shown, url))
                continue
            whole = replace(unit(url, shown, format, split), pairs=pairs)
            delimited = format in ("tsv", "csv") and source.header
            if format in SPLITTABLE and not shown.endswith(COMPRESSED):
                first, ranges = line_ranges(url, RANGE_BYTES, delimited)
                header = header_names(first, format, shown) if delimited else None
                units += [
                    replace(whole, header=header, start=start, end=end, line=line)
                    for start, end, line in ranges
                ]
            elif delimited:
                units.append(replace(whole, header=header_names(first_line(url), format, shown)))
            else:
                units.append(whole)
        for split, listed in files.items():
            for start in range(0, len(listed), FILES_AT_ONCE):
                part = listed[start : start + FILES_AT_ONCE]
                units.append(replace(unit(part[0][1], part[0][0], "files", split), files=part))
    return [replace(piece, number=number) for number, piece in enumerate(units)]


def _catalogues(
    source: SourceConfig, base: Path
) -> Iterator[tuple[Split | None, str, str, dict[str, str]]]:
    """Files of a source; for gettext, each catalogue of the first language with the others'."""
    if not any("{language}" in pattern for _, pattern in source.listed()):
        for split, shown, url in _files(source, base):
            language = next((str(c) for c in source.columns.values() if c != "msgid"), "")
            yield split, shown, url, {language: url}
        return
    languages = list(dict.fromkeys(str(c) for c in source.columns.values() if c != "msgid"))
    for split, pattern in source.listed():
        for file in find_files(pattern.replace("{language}", languages[0]), base):
            catalogues = {languages[0]: file.url}
            for other in languages[1:]:
                beside = file.url.replace(f"/{languages[0]}/", f"/{other}/")
                if Path(beside).exists() or "://" in beside:
                    catalogues[other] = beside
            if len(catalogues) == len(languages):
                yield split, file.shown, file.url, catalogues
