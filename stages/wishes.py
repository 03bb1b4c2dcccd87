"""Wishes in records: columns that say what each target is, and rows that say what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from model.contract import EncoderDecoder
from model.training.loop import best_device, resolve_precision
from model.training.rows import TrainingRows
from model.training.telling import Told
from model.training.wishes import STEPS, LabelledRows, judge, train_future
from model.wishes import UNKNOWN, Wishes
from pipelines.contracts.scores import WishKnown

if TYPE_CHECKING:
    from pipelines.stage import Progress
    from stages.train import TrainConfig

MOST = 64
"""Values of a wish."""


@dataclass(frozen=True)
class Lessons:
    """What a model learns its wishes from."""

    wishes: Wishes
    train: LabelledRows
    valid: LabelledRows

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        rows: Mapping[str, TrainingRows],
        tables: Mapping[str, pl.DataFrame],
    ) -> Lessons:
        """Raises `ValueError` for a column that does not serve.

        Args:
            rows, tables: of the splits `train` and `valid`, row for row.
        """
        columns = {wish: asked.column for wish, asked in config.wishes.items()}
        wishes = wishes_in(tables["train"], columns)
        alike = alike_in(wishes, {wish: asked.within for wish, asked in config.wishes.items()})
        train, valid = (
            LabelledRows(rows[split], labels_of(tables[split], columns, wishes), alike)
            for split in ("train", "valid")
        )
        return cls(wishes, train, valid)

    def told(self, share: float) -> Told:
        """For training in which rows are told what they are, so often."""
        return Told(self.wishes, self.train.labels, share)

    def teach(
        self,
        model: EncoderDecoder,
        config: TrainConfig,
        vocabulary: int,
        seed: int,
        progress: Progress,
    ) -> list[WishKnown]:
        """Gives the model a head for the wishes. Returns how well it judges the validation rows.

        Args:
            vocabulary: different target tokens.
        """
        device = best_device()
        with progress.meter("learns wishes", STEPS, "steps") as meter:
            train_future(
                model,
                self.wishes,
                self.train,
                vocabulary=vocabulary,
                batch_tokens=config.batch_tokens,
                seed=seed,
                device=device,
                precision=resolve_precision(config.precision, device),
                on_step=meter.reach,
            )
        judged = judge(model, self.valid, config.batch_tokens, device)
        return [
            WishKnown(
                wish=wish,
                values=self.wishes.values[wish],
                rows=found.rows,
                accuracy=found.accuracy,
                commonest=found.commonest,
            )
            for (wish, _), found in zip(self.wishes.groups, judged, strict=True)
        ]


def wishes_in(table: pl.DataFrame, columns: Mapping[str, str]) -> Wishes:
    """The values of each wish that the rows have. Raises `ValueError`."""
    known = {}
    for wish, column in columns.items():
        if column not in table.columns:
            raise ValueError(
                f"wishes.{wish}: the rows have no column {column!r}; add it to ingest's columns:"
            )
        values = sorted(_texts(table, column).drop_nulls().unique())
        if not 2 <= len(values) <= MOST:
            raise ValueError(
                f"wishes.{wish}: column {column!r} has {len(values):,} different values in the "
                f"training rows; it needs 2 to {MOST}"
            )
        known[wish] = tuple(values)
    return Wishes(known)


def alike_in(wishes: Wishes, within: Mapping[str, int]) -> np.ndarray:
    """(values, values) whether a target of one value has another too: numbers that are `within` so
    much. Raises `ValueError` for values that are not numbers."""
    alike = np.eye(wishes.count, dtype=bool)
    for wish, numbers in wishes.groups:
        if within[wish]:
            values = np.array([_number(value, wish) for value in wishes.values[wish]])
            near = abs(values[:, None] - values) <= within[wish]
            alike[numbers.start : numbers.stop, numbers.start : numbers.stop] = near
    return alike


def _number(value: str, wish: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(
            f"wishes.{wish}: within needs whole numbers, and some row has {value!r}"
        ) from None


def labels_of(table: pl.DataFrame, columns: Mapping[str, str], wishes: Wishes) -> np.ndarray:
    """(rows, wishes) numbers of values; `UNKNOWN` where a row has none, or none that is known."""
    labels = np.full((len(table), len(columns)), UNKNOWN, dtype=np.int64)
    for column, (wish, numbers) in enumerate(wishes.groups):
        number = dict(zip(wishes.values[wish], numbers, strict=True))
        if columns[wish] in table.columns:
            texts = _texts(table, columns[wish])
            found = texts.replace_strict(number, default=UNKNOWN, return_dtype=pl.Int16)
            labels[:, column] = found.fill_null(UNKNOWN).to_numpy()
    return labels


def _texts(table: pl.DataFrame, column: str) -> pl.Series:
    """A column as text, null where it is empty."""
    texts = table[column].cast(pl.String)
    return texts.set(texts == "", None)
