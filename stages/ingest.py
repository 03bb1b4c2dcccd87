"""Ingest: files in, records out; ids, splits and deduplication that the rest can rely on.

Two Beam jobs. The first parses pieces of files and brings rows of like source together, where
duplicates fall and each group of one source gets one split. The second brings rows to the shard of
their id. Elements are Arrow tables, never single rows.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.stage import Config, Context, Inputs, Result, Stage

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Deduplicate = Literal["none", "exact", "normalized"]
RANGE_BYTES = 16_000_000
"""Bytes of a file that one worker parses at a time."""
DUPLICATES = ("duplicate", "near duplicate")
ROW_COLUMNS = ("text", "target", "id")


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
        Literal["tsv", "csv", "json", "jsonl", "parquet", "gettext"] | None,
        Field(description="told from the file's name where not given"),
    ] = None
    columns: Annotated[
        dict[str, str | int],
        Field(
            description="text and target, optionally id, and free ones: a header's name, a number "
            "from 1, a dotted path (JSON) or a language (gettext)"
        ),
    ]
    header: Annotated[bool, Field(description="whether TSV and CSV begin with column names")] = True
    explode: Annotated[
        str | None, Field(description="list in a JSON record of which each element is a row")
    ] = None
    extract: Annotated[
        dict[str, str],
        Field(description="column to a regular expression: the first match is what is used"),
    ] = {}
    reject: Annotated[
        dict[str, str], Field(description="column to a regular expression that no row may match")
    ] = {}

    @field_validator("columns")
    @classmethod
    def _has_source(cls, value: dict[str, str | int]) -> dict[str, str | int]:
        missing = {"text", "target"} - value.keys()
        if missing:
            raise ValueError(f"must say where {' and '.join(sorted(missing))} stands")
        reserved = {"split", "task", "position", "group"} & value.keys()
        if reserved:
            raise ValueError(f"{', '.join(sorted(reserved))} is a name of the pipeline's own")
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
        unknown = (self.reject.keys() | self.extract.keys()) - self.columns.keys()
        if unknown:
            raise ValueError(
                f"extract: or reject: names {', '.join(sorted(unknown))}, which is not in columns:"
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
    languages: Annotated[
        dict[Literal["text", "target"], str],
        Field(description="language codes; the target's chooses BLEU's tokenizer"),
    ] = {}
    split: Annotated[
        dict[Literal["valid", "test"], int | float],
        Field(description="rows (whole numbers) or shares (below 1) of valid and test"),
    ] = {}
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
        from stages.sources import content_digest

        for source in [self.config, *self.config.also]:
            for file in _files(source, base):
                yield file[1], content_digest(file[2])

    def run(self, context: Context, inputs: Inputs) -> Result:
        import polars as pl

        from stages.rows import check_rejected, write_rejected

        config: IngestConfig = self.config
        units = _units(config, context.base)
        folder = context.scratch / "groups"
        if not (context.scratch / "parsed").exists():
            context.progress.say(f"reads {len(units)} piece(s) of files")
            grouping = Grouping(
                config.shards, config.task, config.deduplicate, "id" in config.columns, str(folder)
            )
            context.beam.run(lambda pipeline: _parse_job(pipeline, units, grouping))
            (context.scratch / "parsed").touch()
        chosen = _choose_groups(sorted(folder.glob("rows-*.parquet")), config.split)
        placement = Placement(
            chosen,
            config.split,
            str(context.output),
            str(folder),
            config.shards,
            [name for name in config.columns if name not in ROW_COLUMNS],
        )
        groups = sorted(str(path) for path in folder.glob("rows-*.parquet"))
        context.beam.run(lambda pipeline: _place_job(pipeline, groups, placement))
        rejects = [pl.read_parquet(path) for path in sorted(folder.glob("rejected-*.parquet"))]
        rejected = write_rejected(rejects, context.output, config.shards)
        splits = _count_splits(context.output)
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
                "languages": dict(config.languages),
                "task": config.task,
                "splits": splits,
                "shards": config.shards,
            },
        )


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
    from stages.sources import line_ranges

    units: list[dict[str, Any]] = []
    for source in [config, *config.also]:
        extra: dict[str, Any] = {
            "extract": source.extract,
            "reject": source.reject,
            "extra": source is not config,
        }
        for split, shown, url, pairs in _catalogues(source, base):
            format = source.format or infer_format(shown)
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
                first, _ = line_ranges(url, RANGE_BYTES, True)
                common["header"] = header_names(first, format, shown)
            units.append(common)
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


def _choose_groups(tables: list[Path], split: Mapping[Any, int | float]) -> dict[str, str]:
    """Which groups of one source make up splits given as numbers of rows.

    Groups are taken in the order of their hash, test first; one that would overshoot is passed
    over. So the choice depends on the sources alone, not on how they are stored.
    """
    import polars as pl

    wanted = {name: size for name, size in split.items() if isinstance(size, int)}
    if not wanted or not tables:
        return {}
    free = pl.scan_parquet(tables).filter(pl.col("split").is_null())
    groups = free.group_by("group").len().sort("group").collect()
    chosen: dict[str, str] = {}
    for name in ("test", "valid"):
        left = wanted.get(name, 0)
        for group, count in groups.iter_rows():
            if left == 0:
                break
            if group not in chosen and count <= left:
                chosen[group] = name
                left -= count
        # Groups stay whole, so a few rows may be lacking to the number asked for.
        if left >= max(groups["len"], default=1):
            raise ValueError(
                f"split: {name}: {wanted[name]} rows were asked for, but there are not so many"
            )
    return chosen


def _count_splits(output: Path) -> dict[str, int]:
    import polars as pl

    counts = (
        pl.scan_parquet(sorted(output.glob("rows/*.parquet"))).group_by("split").len().collect()
    )
    found = dict(counts.iter_rows())
    return {name: int(found.get(name, 0)) for name in SPLITS}


def normalized_key(text: str) -> str:
    """Text without case, width, punctuation and spaces: what near duplicates have in common."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(character for character in folded if character.isalnum())
    return kept or folded


def to_arrow(table: Any) -> bytes:
    stream = io.BytesIO()
    table.write_ipc(stream)
    return stream.getvalue()


def from_arrow(tables: Any) -> Any:
    import polars as pl

    return pl.concat([pl.read_ipc(io.BytesIO(table)) for table in tables], how="diagonal")


def _parse_job(pipeline: Any, units: list[dict[str, Any]], grouping: Grouping) -> Any:
    import apache_beam as beam

    return (
        pipeline
        | "Units" >> beam.Create(units)
        | "Spread" >> beam.Reshuffle()
        | "Parse" >> beam.FlatMap(grouping.parse)
        | "By source" >> beam.GroupByKey()
        | "Deduplicate" >> beam.Map(grouping.deduplicate)
    )


def _place_job(pipeline: Any, groups: list[str], placement: Placement) -> Any:
    import apache_beam as beam

    return (
        pipeline
        | "Groups" >> beam.Create(groups)
        | "Spread" >> beam.Reshuffle()
        | "Split" >> beam.FlatMap(placement.split)
        | "By id" >> beam.GroupByKey()
        | "Write" >> beam.Map(placement.write)
    )


class Grouping:
    """First job: parse rows, and drop duplicates among those of one source."""

    def __init__(
        self, shards: int, task: str, duplicates: Deduplicate, own_ids: bool, folder: str
    ) -> None:
        self.shards, self.task, self.duplicates = shards, task, duplicates
        self.own_ids, self.folder = own_ids, folder

    def parse(self, unit: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
        """The rows of a piece of a file, one Arrow table for each bucket of sources."""
        import polars as pl

        from stages.formats import Unit, parse
        from stages.rows import content_hash, rejected_rows, write_table

        fields = {key: unit[key] for key in Unit.__dataclass_fields__ if key in unit}
        kept = {name: re.compile(pattern) for name, pattern in unit["extract"].items()}
        refused = {name: re.compile(pattern) for name, pattern in unit["reject"].items()}
        rows, rejects, read = [], [], 0
        for parsed in parse(Unit(**fields)):
            read += 1
            values = dict(parsed.values)
            reason, detail = parsed.reason, parsed.detail
            if reason is None:
                for name, pattern in kept.items():
                    match = pattern.search(values.get(name) or "")
                    values[name] = match[0].strip() if match else ""
                reason, detail = _refusal(values, refused)
            if reason is not None:
                rejects.append(
                    {
                        "position": f"{unit['shown']}:{parsed.line}",
                        "stage": "ingest",
                        "reason": reason,
                        "detail": detail,
                        "excerpt": " | ".join(str(v) for v in values.values() if v is not None),
                    }
                )
                continue
            text, target = str(values["text"]), str(values["target"])
            key = normalized_key(text) if self.duplicates == "normalized" else text
            rows.append(
                {
                    **values,
                    "id": values.get("id") or content_hash(self.task, text, target),
                    "task": self.task,
                    "split": "train" if unit["extra"] else unit["split"],
                    "position": f"{unit['shown']}:{parsed.line}",
                    "group": content_hash(key),
                    "number": unit["number"],
                    "line": parsed.line,
                }
            )
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_table(rejected_rows(rejects), folder / f"rejected-0-{unit['number']:06d}.parquet")
        (folder / f"read-{unit['number']:06d}.count").write_text(str(read))
        schema = {"number": pl.Int64, "line": pl.Int64}
        names = list(dict.fromkeys([*unit["columns"], "id", "task", "split", "position", "group"]))
        table = pl.DataFrame(
            rows, schema={**dict.fromkeys(names, pl.String), **schema}, orient="row"
        )
        buckets = [int(group[:8], 16) % self.shards for group in table["group"]]
        for bucket in sorted(set(buckets)):
            yield bucket, to_arrow(table.filter(pl.Series(buckets, dtype=pl.Int64) == bucket))

    def deduplicate(self, keyed: tuple[int, Any]) -> str:
        """Writes one bucket without repeated pairs and without sources in two splits."""
        import polars as pl

        from stages.rows import write_table

        bucket, tables = keyed
        rank = {"test": 0, "valid": 1, "train": 2}
        ranked = pl.col("split").replace_strict(rank, default=None, return_dtype=pl.Int64)
        # Of repeated rows, the one that is measured on stays; then the one read first.
        table = from_arrow(tables).sort(ranked.fill_null(1), "number", "line", maintain_order=True)
        # Where files were given for each split a source may stand in two.
        best = ranked.min().over("group")
        reasons = [pl.when(ranked > best).then(pl.lit("source is in another split"))]
        if self.duplicates != "none":
            repeated = ~pl.struct("text", "target").is_first_distinct()
            reasons.append(pl.when(repeated).then(pl.lit("duplicate")))
        if self.duplicates == "normalized":
            pairs = table.select("text", "target").iter_rows()
            keys = [f"{normalized_key(text)}\0{normalized_key(target)}" for text, target in pairs]
            near = ~pl.Series(keys, dtype=pl.String).is_first_distinct()
            reasons.append(pl.when(near).then(pl.lit("near duplicate")))
        table = table.with_columns(reason=pl.coalesce(reasons))
        if self.duplicates == "none" and not self.own_ids:
            nth = pl.col("id").cum_count().over("id")
            again = pl.concat_str(pl.col("id"), pl.lit("-"), nth.cast(pl.String))
            table = table.with_columns(pl.when(nth > 1).then(again).otherwise("id").alias("id"))
        kept = table.filter(pl.col("reason").is_null()).drop("reason")
        dropped = table.filter(pl.col("reason").is_not_null())
        folder = Path(self.folder)
        write_table(_as_rejected(dropped), folder / f"rejected-1-{bucket:06d}.parquet")
        write_table(kept, folder / f"rows-{bucket:06d}.parquet")
        return str(bucket)


def _refusal(
    values: Mapping[str, str | None], patterns: Mapping[str, re.Pattern[str]]
) -> tuple[str | None, str]:
    """Why a parsed row cannot be a record, or None."""
    for name in ("text", "target"):
        if not (values.get(name) or "").strip():
            return f"empty {name}", ""
    for name, pattern in patterns.items():
        found = pattern.search(values.get(name) or "")
        if found:
            return f"{name} matches reject", f"{found[0]!r} matches {pattern.pattern}"
    return None, ""


def _as_rejected(table: Any) -> Any:
    """Rows with a `reason` column as rejects."""
    from stages.rows import rejected_rows

    return rejected_rows(
        {
            "id": row["id"],
            "position": row["position"],
            "stage": "ingest",
            "reason": row["reason"],
            "excerpt": f"{row['text']} | {row['target']}",
        }
        for row in table.iter_rows(named=True)
    )


class Placement:
    """Second job: give every row its split and write it to the shard of its id."""

    def __init__(
        self,
        chosen: Mapping[str, str],
        sizes: Mapping[Any, int | float],
        output: str,
        folder: str,
        shards: int,
        free: Sequence[str],
    ) -> None:
        shares = {name: size for name, size in sizes.items() if isinstance(size, float)}
        self.chosen, self.shares = dict(chosen), shares
        self.output, self.folder, self.shards, self.free = output, folder, shards, list(free)

    def split_of(self, group: str) -> str:
        """The split of a group: by the numbers chosen, else by where its hash falls."""
        if group in self.chosen:
            return self.chosen[group]
        # The bucket used the first eight digits; these are independent of it.
        place = int(group[8:16], 16) / 2**32
        below = 0.0
        for name in ("test", "valid"):
            below += self.shares.get(name, 0.0)
            if place < below:
                return name
        return "train"

    def split(self, path: str) -> Iterator[tuple[int, bytes]]:
        import polars as pl

        from stages.rows import shard_of, write_table

        table = pl.read_parquet(path)
        declared = table.select("split", "group").rows()
        open_groups = {group for split, group in declared if split is None}
        splits, reasons = [], []
        for split, group in declared:
            placed = self.split_of(group) if group in open_groups else split
            splits.append(split or placed)
            reasons.append(
                None if placed in (None, split or placed) else "source is in another split"
            )
        table = table.with_columns(
            pl.Series("split", splits, dtype=pl.String),
            pl.Series("reason", reasons, dtype=pl.String),
        )
        dropped = table.filter(pl.col("reason").is_not_null())
        write_table(
            _as_rejected(dropped), Path(self.folder) / f"rejected-2-{Path(path).stem}.parquet"
        )
        table = table.filter(pl.col("reason").is_null()).drop("reason")
        shards = pl.Series([shard_of(id, self.shards) for id in table["id"]], dtype=pl.Int64)
        for shard in range(self.shards):
            yield shard, to_arrow(table.filter(shards == shard))

    def write(self, keyed: tuple[int, Any]) -> str:
        """Writes one shard, sorted by id; a second row of the same id is rejected."""
        import polars as pl

        from stages.rows import shard_name, write_table

        shard, tables = keyed
        table = from_arrow(tables).sort("id", "number", "line", maintain_order=True)
        repeated = ~table["id"].is_first_distinct()
        dropped = table.filter(repeated).with_columns(reason=pl.lit("duplicate id"))
        write_table(_as_rejected(dropped), Path(self.folder) / f"rejected-3-{shard:06d}.parquet")
        for name in self.free:
            if name not in table.columns:
                table = table.with_columns(pl.lit(None, pl.String).alias(name))
        names = ["id", "split", "task", "text", "target", "position", *self.free]
        name = f"{shard_name(shard, self.shards)}.parquet"
        write_table(table.filter(~repeated).select(names), Path(self.output) / "rows" / name)
        return str(shard)
