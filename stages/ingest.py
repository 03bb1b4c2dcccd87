"""Ingest: files in, records out; ids, splits and deduplication that the rest can rely on.

Two Beam jobs. The first parses pieces of files and brings rows of like source together, where
duplicates fall and each group of one source gets one split. The second brings rows to the shard of
their id. Elements are Arrow tables, never single rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.stage import Config, Context, Inputs, Result, Stage

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Deduplicate = Literal["none", "exact", "normalized"]
RANGE_BYTES = 16_000_000
"""Bytes of a file that one worker parses at a time."""
ROW_COLUMNS = ("text", "image", "audio", "target", "id")
OWN_COLUMNS = frozenset({
    "split", "task", "modalities", "position", "source", "group", "number", "line", "reason",
    "image_url", "audio_url", "reference", "prepared_source", "prepared_target", "source_ids",
    "target_ids", "shard", "row", "part", "hypothesis", "tokens", "log_probability",
    "token_log_probabilities", "finished", "labels", "probabilities", "best",
    "reference_log_probability", "reference_tokens", "reference_correct", "asked", "said",
    "references",
})  # fmt: skip
"""What stages write into rows on their way, so that no free column may be called so."""
FILES_AT_ONCE = 500
"""Files, each a row, that one worker reads at a time."""


class PixelsConfig(Config):
    """Pictures written out as numbers in the cells of a table, row by row."""

    columns: Annotated[
        str, Field(pattern=r"^\d+-\d+$", description="first and last column, from 1: 1-64")
    ]
    width: Annotated[int, Field(ge=1, description="pixels in a row")]
    maximum: Annotated[float, Field(gt=0, description="the number that is white")] = 255


class SourceConfig(Config):
    """Files of one layout."""

    source: Annotated[
        str | list[str] | dict[Split, str | list[str]],
        Field(
            description="path, glob, fsspec URL or package://NAME/PATH, or a list; or one for each "
            "of train, valid and test"
        ),
    ]
    format: Annotated[
        Literal["tsv", "csv", "json", "jsonl", "parquet", "gettext", "files"] | None,
        Field(
            description="told from the file's name where not given; files: each picture or sound "
            "is a row, with the columns path, name and folder"
        ),
    ] = None
    columns: Annotated[
        dict[str, str | int],
        Field(
            description="target and any of text, image and audio (paths from the table's folder, "
            "or bytes in Parquet), optionally id, and free ones: a header's name, a number from 1, "
            "a dotted path (JSON) or a language (gettext)"
        ),
    ]
    header: Annotated[bool, Field(description="whether TSV and CSV begin with column names")] = True
    explode: Annotated[
        str | None, Field(description="list in a JSON record of which each element is a row")
    ] = None
    pixels: Annotated[
        PixelsConfig | None, Field(description="columns of a TSV or CSV that make up the image")
    ] = None
    replace: Annotated[
        dict[str, dict[str, str]],
        Field(description="column to what its values become; rows of other values are rejected"),
    ] = {}
    extract: Annotated[
        dict[str, str],
        Field(description="column to a regular expression: the first match is what is used"),
    ] = {}
    reject: Annotated[
        dict[str, str], Field(description="column to a regular expression that no row may match")
    ] = {}

    @field_validator("columns")
    @classmethod
    def _has_target(cls, value: dict[str, str | int]) -> dict[str, str | int]:
        if "target" not in value:
            raise ValueError("must say where target stands")
        taken = min(OWN_COLUMNS & value.keys(), default=None)
        if taken is not None:
            raise ValueError(
                f"{taken} is a name of the pipeline's own; call the column otherwise, for "
                f"instance my_{taken}: {value[taken]}"
            )
        return value

    @field_validator("extract", "reject")
    @classmethod
    def _compiles(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value.values():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _columns_known(self) -> SourceConfig:
        if not self.pixels and not {"text", "image", "audio"} & self.columns.keys():
            raise ValueError("columns: must say where text, image or audio stands")
        unknown = self.reject.keys() | self.extract.keys() | self.replace.keys()
        unknown -= self.columns.keys()
        if unknown:
            raise ValueError(
                f"extract:, replace: or reject: names {', '.join(sorted(unknown))}, which is not "
                "in columns:"
            )
        return self

    def listed(self) -> list[tuple[Split | None, str]]:
        """(declared split, pattern) of every source."""
        if isinstance(self.source, dict):
            return [
                (split, pattern)
                for split, patterns in self.source.items()
                for pattern in ([patterns] if isinstance(patterns, str) else patterns)
            ]
        patterns = [self.source] if isinstance(self.source, str) else self.source
        return [(None, pattern) for pattern in patterns]


class IngestConfig(SourceConfig):
    """Which files, which columns, and how rows are split."""

    also: Annotated[
        list[SourceConfig],
        Field(description="further files of other layouts, for the training split alone"),
    ] = []
    task: Annotated[str, Field(description="name of the task, in the records and the scores")] = (
        "translate"
    )
    labels: Annotated[
        bool | list[str],
        Field(
            description="the targets are labels of a classification: these, or true for those of "
            "the training split"
        ),
    ] = False
    languages: Annotated[
        dict[Literal["text", "target"], str],
        Field(description="language codes; the target's chooses BLEU's tokenizer"),
    ] = {}
    split: Annotated[
        dict[Literal["valid", "test"], int | float],
        Field(description="rows (whole numbers) or shares (below 1) of valid and test"),
    ] = {}
    max_file_bytes: Annotated[
        int, Field(ge=1, description="largest picture or sound file that is read")
    ] = 100_000_000
    deduplicate: Annotated[
        Deduplicate,
        Field(description="which repeated pairs to drop; normalized ignores case and punctuation"),
    ] = "normalized"
    shards: Annotated[int, Field(ge=1, le=99999, description="files the rows are spread over")] = 4
    max_rejected: Annotated[
        float, Field(ge=0, le=1, description="share of bad rows, duplicates aside, that fails")
    ] = 0.5

    @field_validator("split")
    @classmethod
    def _sizes(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        for name, size in value.items():
            if size < 0 or (isinstance(size, float) and size >= 1):
                raise ValueError(f"{name}: must be a whole number of rows or a share below 1")
        if sum(size for size in value.values() if isinstance(size, float)) >= 1:
            raise ValueError("the shares leave nothing to train on")
        return value

    @model_validator(mode="after")
    def _split_once(self) -> IngestConfig:
        if isinstance(self.source, dict) and self.split:
            raise ValueError("split: and a source: for each split cannot both be given")
        return self


class Ingest(Stage):
    """Reads files into records with stable ids and a split."""

    Config: ClassVar[type[Config]] = IngestConfig
    output: ClassVar[str] = "records"
    libraries: ClassVar[tuple[str, ...]] = ("apache-beam", "polars", "pyarrow", "polib", "fsspec")

    def outside(self, base: Path) -> Iterator[tuple[str, str]]:
        from stages.sources import content_digest, exists

        for source in [self.config, *self.config.also]:
            for file in _files(source, base):
                yield file[1], content_digest(file[2])
        for url in _media_files(self.config, base):
            # A file that is not there is a reject when the rows are read.
            yield url, content_digest(url) if exists(url) else "missing"

    def run(self, context: Context, inputs: Inputs) -> Result:
        import polars as pl

        from stages.grouping import DUPLICATES, Grouping, parse_job
        from stages.placement import Placement, choose_groups, place_job
        from stages.rows import check_rejected, count_splits, write_rejected

        config: IngestConfig = self.config
        units = _units(config, context.base)
        folder = context.scratch / "groups"
        if not (context.scratch / "parsed").exists():
            context.progress.say(f"reads {len(units)} piece(s) of files")
            grouping = Grouping(
                config.shards,
                config.task,
                config.deduplicate,
                "id" in config.columns,
                config.labels if isinstance(config.labels, list) else [],
                config.max_file_bytes,
                str(folder),
            )
            context.beam.run(lambda pipeline: parse_job(pipeline, units, grouping))
            (context.scratch / "parsed").touch()
        chosen = choose_groups(sorted(folder.glob("rows-*.parquet")), config.split)
        placement = Placement(
            chosen,
            config.split,
            str(context.output),
            str(folder),
            config.shards,
            [name for name in config.columns if name not in ROW_COLUMNS],
        )
        groups = sorted(str(path) for path in folder.glob("rows-*.parquet"))
        context.beam.run(lambda pipeline: place_job(pipeline, groups, placement))
        rejects = [pl.read_parquet(path) for path in sorted(folder.glob("rejected-*.parquet"))]
        rejected = write_rejected(rejects, context.output, config.shards)
        splits = count_splits(context.output)
        rows = sum(splits.values())
        read = sum(int(path.read_text()) for path in folder.glob("read-*.count"))
        total = rows + sum(rejected.values())
        check_rejected(context.stage, total, rejected, config.max_rejected, DUPLICATES)
        if rows == 0:
            raise ValueError(f"no rows are left of {read} read")
        context.progress.say(
            "splits: " + ", ".join(f"{name} {count:,}" for name, count in splits.items())
        )
        return Result(
            rows_in=read,
            rows=rows,
            rejected=rejected,
            properties={
                "tasks": {config.task: self.task(context.output)},
                "splits": splits,
                "shards": config.shards,
            },
        )

    def task(self, output: Path) -> dict[str, Any]:
        """What the stages downstream must know of the task."""
        from stages.rows import task_facts

        config: IngestConfig = self.config
        return task_facts(output, config.task, config.languages, config.labels)


def _media_files(config: IngestConfig, base: Path) -> list[str]:
    """URLs of all pictures and sounds that tables name, in order."""
    if not any({"image", "audio"} & source.columns.keys() for source in [config, *config.also]):
        return []
    from stages.formats import Unit, media_url, parse

    urls: dict[str, None] = {}
    for unit in _units(config, base):
        if unit["format"] == "files":
            continue  # each is a source file by itself
        fields = {key: unit[key] for key in Unit.__dataclass_fields__ if key in unit}
        for parsed in parse(Unit(**fields)):
            for name in ("image", "audio"):
                value = parsed.values.get(name)
                if isinstance(value, str) and value:
                    urls[media_url(unit["url"], value)] = None
    return list(urls)


def _files(source: SourceConfig, base: Path) -> Iterator[tuple[Split | None, str, str]]:
    """(declared split, name as shown, URL) of every file of a source."""
    from stages.sources import find_files

    for split, pattern in source.listed():
        if "{language}" in pattern:
            languages = [str(c) for c in source.columns.values() if c != "msgid"]
            for language in dict.fromkeys(languages):
                for file in find_files(pattern.replace("{language}", language), base):
                    yield split, file.shown, file.url
        else:
            for file in find_files(pattern, base):
                yield split, file.shown, file.url


def _units(config: IngestConfig, base: Path) -> list[dict[str, Any]]:
    """The pieces of files to parse, as JSON, numbered in the order the user gave."""
    from stages.formats import COMPRESSED, SPLITTABLE, header_names, infer_format
    from stages.sources import first_line, line_ranges

    units: list[dict[str, Any]] = []
    for source in [config, *config.also]:
        extra: dict[str, Any] = {
            "extract": source.extract,
            "replace": source.replace,
            "reject": source.reject,
            "pixels": source.pixels.model_dump() if source.pixels else None,
            "extra": source is not config,
        }
        files: dict[Split | None, list[tuple[str, str]]] = {}
        for split, shown, url, pairs in _catalogues(source, base):
            format = source.format or infer_format(shown)
            if format == "files":
                files.setdefault(split, []).append((shown, url))
                continue
            common = {
                **extra,
                "url": url,
                "shown": shown,
                "format": format,
                "columns": source.columns,
                "explode": source.explode,
                "pairs": pairs,
                "split": split,
                "header": None,
            }
            delimited = format in ("tsv", "csv") and source.header
            if format in SPLITTABLE and not shown.endswith(COMPRESSED):
                first, ranges = line_ranges(url, RANGE_BYTES, delimited)
                header = header_names(first, format, shown) if delimited else None
                units += [
                    {**common, "header": header, "start": start, "end": end, "line": line}
                    for start, end, line in ranges
                ]
                continue
            if delimited:
                common["header"] = header_names(first_line(url), format, shown)
            units.append(common)
        for split, found in files.items():
            for start in range(0, len(found), FILES_AT_ONCE):
                part = found[start : start + FILES_AT_ONCE]
                unit = {"url": part[0][1], "shown": part[0][0], "format": "files", "files": part}
                units.append({**extra, **unit, "columns": source.columns, "split": split})
    return [{**unit, "number": number} for number, unit in enumerate(units)]


def _catalogues(
    source: SourceConfig, base: Path
) -> Iterator[tuple[Split | None, str, str, dict[str, str]]]:
    """Files of a source; for gettext, the first language's catalogues with the others beside."""
    from stages.sources import find_files

    if not any("{language}" in pattern for _, pattern in source.listed()):
        for split, shown, url in _files(source, base):
            language = next((str(c) for c in source.columns.values() if c != "msgid"), "")
            yield split, shown, url, {language: url}
        return
    languages = list(dict.fromkeys(str(c) for c in source.columns.values() if c != "msgid"))
    for split, pattern in source.listed():
        for file in find_files(pattern.replace("{language}", languages[0]), base):
            found = {languages[0]: file.url}
            for other in languages[1:]:
                beside = file.url.replace(f"/{languages[0]}/", f"/{other}/")
                if Path(beside).exists() or "://" in beside:
                    found[other] = beside
            if len(found) == len(languages):
                yield split, file.shown, file.url, found
