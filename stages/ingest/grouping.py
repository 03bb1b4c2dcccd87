"""Second step of ingest: drops repeated rows among those of one source, bucket by bucket."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from model.modalities.text import to_simplified
from pipelines.contracts.tasks import is_chinese
from pipelines.running.beam_jobs import Ticks
from pipelines.store.shared import SharedPath
from stages.ingest.options import Deduplicate
from stages.rows.batches import IndexedBatches
from stages.rows.files import sizes_of
from stages.rows.rejects import RejectFile
from stages.rows.shards import content_hash, write_table

HELD_OUT, LEARNT = "source is held out elsewhere", "source is in training elsewhere"
LEARNT_PAIR = "pair is in training elsewhere"
DUPLICATES = ("duplicate", "near duplicate", HELD_OUT, LEARNT_PAIR, "further reference")
"""Reject reasons that do not count as bad data."""
SAMPLE = 64
"""Ids of a bucket that are looked at to cut the shards into ranges."""


@dataclass(frozen=True)
class Keys:
    """What the rows of a task have in common that are the same, or nearly."""

    duplicates: Deduplicate
    languages: tuple[str, str]
    """Codes of the source's and of the target's language."""

    def group(self, text: str, digests: Sequence[str]) -> str:
        """What is the same for all rows of one source: they are in one split.

        Args:
            digests: of the source's pictures, sounds and so on.
        """
        normalized = self.duplicates == "normalized"
        key = normalized_key(text, self.languages[0]) if normalized else text
        return content_hash(key, *digests)

    def target(self, text: str) -> str:
        """What is the same for targets that are nearly the same."""
        return normalized_key(text, self.languages[1])


def normalized_key(text: str, language: str = "") -> str:
    """Text without case, width, punctuation and spaces, and in Chinese without the difference
    between simplified and traditional characters: what near duplicates have in common."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if is_chinese(language):
        folded = to_simplified(folded)
    alphanumeric = "".join(character for character in folded if character.isalnum())
    return alphanumeric or folded


@dataclass(frozen=True)
class Bucket:
    """The rows whose groups are in one range of hashes."""

    number: int

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


@dataclass(frozen=True)
class GroupedBucket:
    """What became of a bucket."""

    rows: int
    bytes: int
    """In memory."""
    rejected: dict[str, int]
    rejects: list[int]
    """The key of each batch in its file of rejects."""
    ids: list[str]
    """A sample."""
    files: dict[str, int]
    """See `stages.rows.files.sizes_of`."""


class Grouping:
    """The function that deduplicates a bucket."""

    def __init__(
        self,
        folder: SharedPath,
        parsed: IndexedBatches,
        shards: int,
        keys: Keys,
        own_ids: bool,
        apart: IndexedBatches | None = None,
    ) -> None:
        """
        Args:
            parsed: the rows by bucket, in the order that the user gave.
            own_ids: whether the ids are the user's.
            apart: `group`, `split`, `id` and `said` (the key of the target) of other records' rows,
                by bucket.
        """
        self.folder, self.parsed, self.shards = folder, parsed, shards
        self.keys, self.own_ids, self.apart = keys, own_ids, apart

    def path(self, bucket: Bucket) -> SharedPath:
        return self.folder / f"grouped-{bucket.name}.parquet"

    def rejects(self, bucket: Bucket) -> SharedPath:
        return self.folder / f"rejects-2-{bucket.name}.arrow"

    def __call__(self, bucket: Bucket, ticks: Ticks) -> GroupedBucket:
        rejects = RejectFile(self.rejects(bucket).here, self.shards)
        table = self.parsed.read(bucket.number)
        ticks(1)
        if table is None:
            return GroupedBucket(0, 0, {}, [], [], {})
        others = self.apart.read(bucket.number) if self.apart else None
        if others is not None:
            table = _kept_apart(table, others)
            said = pl.Series([self.keys.target(target) for target in table["target"]])
            numbered = table.select("group").with_columns(said=said).with_row_index("row")
            near = numbered.join(others, ["group", "said"], how="semi")["row"].implode()
            same = pl.col("id").is_in(others["id"].implode()) & (not self.own_ids)
            if self.keys.duplicates == "normalized":
                same |= pl.int_range(pl.len()).is_in(near)
            pair = pl.when(same).then(pl.lit(LEARNT_PAIR))
            table = table.with_columns(elsewhere=pl.coalesce("elsewhere", pair))
        rank = {"test": 0, "valid": 1, "train": 2}
        ranked = pl.col("split").replace_strict(rank, default=None, return_dtype=pl.Int64)
        # Of repeated rows, one in test or valid is kept; otherwise the one that was read first.
        table = table.sort(ranked.fill_null(1), "number", "line", maintain_order=True)
        # If files were given for each split, a source can be in two of them.
        best = ranked.min().over("group")
        reasons = [] if others is None else [pl.col("elsewhere")]
        reasons.append(pl.when(ranked > best).then(pl.lit("source is in another split")))
        if self.keys.duplicates != "none":
            repeated = ~pl.struct("source", "target").is_first_distinct()
            reasons.append(pl.when(repeated).then(pl.lit("duplicate")))
        if self.keys.duplicates == "normalized":
            pairs = table.select("group", "target").iter_rows()
            keys = [f"{group}{self.keys.target(target)}" for group, target in pairs]
            near = ~pl.Series(keys, dtype=pl.String).is_first_distinct()
            reasons.append(pl.when(near).then(pl.lit("near duplicate")))
        table = table.with_columns(reason=pl.coalesce(reasons)).drop("elsewhere", strict=False)
        if self.keys.duplicates == "none" and not self.own_ids:
            nth = pl.col("id").cum_count().over("id")
            again = pl.concat_str(pl.col("id"), pl.lit("-"), nth.cast(pl.String))
            table = table.with_columns(pl.when(nth > 1).then(again).otherwise("id").alias("id"))
        remaining = table.filter(pl.col("reason").is_null()).drop("reason")
        rejects.add_rows(table.filter(pl.col("reason").is_not_null()), "ingest")
        write_table(remaining, self.path(bucket).here)
        step = max(1, len(remaining) // SAMPLE)
        ids = remaining["id"].gather_every(step).head(SAMPLE).to_list()
        size = int(remaining.estimated_size())
        batches = rejects.close()
        files = sizes_of(self.path(bucket), self.rejects(bucket))
        return GroupedBucket(len(remaining), size, rejects.counts, batches, ids, files)


def _kept_apart(table: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """A bucket with the column `elsewhere`: why a row must be left out because of other records. A
    source that is in their training can only be in training here too."""
    held = others.filter(pl.col("split") != "train")["group"].unique().implode()
    learnt = others.filter(pl.col("split") == "train")["group"].unique().implode()
    is_held, is_learnt = pl.col("group").is_in(held), pl.col("group").is_in(learnt)
    evaluated = pl.col("split").is_in(["valid", "test"])
    return table.with_columns(
        elsewhere=pl.when(is_held)
        .then(pl.lit(HELD_OUT))
        .when(is_learnt & evaluated)
        .then(pl.lit(LEARNT)),
        split=pl.when(is_learnt & pl.col("split").is_null())
        .then(pl.lit("train"))
        .otherwise("split"),
    )
