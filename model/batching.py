"""Length-bucketed batches under a token budget, the same for the same seed and epoch.

Rows of similar length share a batch, because one long row pads all the others of its batch. This
module works only with lengths and row numbers, not with the contents of tensors.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from model.vocabulary import PAD


def token_budget_batches(
    lengths: np.ndarray, budget: int, order: np.ndarray, targets: int = 0
) -> list[np.ndarray]:
    """Cuts `order` into consecutive batches that hold at most `budget` tokens once padded.

    Rows with different kinds of sources (see `kinds_of`) never share a batch: each would be padded
    with everything that only the other has.

    Args:
        lengths: (rows, sequences) tokens of each row's sequences. The encoder concatenates those
            of the source, each padded separately; the last `targets` columns are the decoder's.
        budget: batch size: maximum padded tokens of either side in a batch. A longer row gets a
            batch of its own.
        order: row numbers, sorted by kind, and by length or nearly so.
    """
    batches: list[np.ndarray] = []
    start = 0
    sources = lengths.shape[1] - targets
    kinds = kinds_of(lengths[:, :sources])[order].tolist()
    longest = [0] * lengths.shape[1]
    for index, row in enumerate(lengths[order].tolist()):  # lists: far faster than arrays of three
        grown = list(map(max, longest, row))
        width = max([sum(grown[:sources]), *grown[sources:]])
        full = width * (index - start + 1) > budget or kinds[index] != kinds[start]
        if index > start and full:
            batches.append(order[start:index])
            start, grown = index, row
        longest = grown
    if start < len(order):
        batches.append(order[start:])
    return batches


def step_batches(lengths: np.ndarray, budget: int, multiple: int) -> list[np.ndarray]:
    """Cuts the rows of a training step into batches as `token_budget_batches`, so many that their
    number is a multiple of `multiple`: the most expensive are cut in two, and where no row is left
    to cut, batches are empty. Those that follow each other cost about the same, if `multiple` is
    more than 1, so that processes which compute them at a time end together.

    Args:
        lengths: (rows, modalities + 1), the target last.
    """
    order = np.argsort(kinds_of(lengths[:, :-1]), kind="stable")
    batches = token_budget_batches(lengths, budget, order, targets=1)
    if multiple == 1:
        return batches

    def costed(batch: np.ndarray) -> tuple[int, int, np.ndarray]:
        """The batch with its cost, dearest first in a heap, and a number that no other has."""
        cost = len(batch) * int(lengths[batch].max(axis=0).sum()) if len(batch) else 0
        return -cost, next(numbers), batch

    numbers = itertools.count()
    dearest = [costed(batch) for batch in batches if len(batch) > 1]
    rest = [costed(batch) for batch in batches if len(batch) == 1]
    heapq.heapify(dearest)
    while (len(dearest) + len(rest)) % multiple:
        if not dearest:
            rest.append(costed(order[:0]))
            continue
        batch = heapq.heappop(dearest)[2]
        batch = batch[np.argsort(lengths[batch].sum(axis=1), kind="stable")]
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            if len(half) > 1:
                heapq.heappush(dearest, costed(half))
            else:
                rest.append(costed(half))
    return [batch for _, _, batch in sorted([*dearest, *rest], key=lambda each: each[:2])]


def kinds_of(lengths: np.ndarray) -> np.ndarray:
    """(rows,) a number for the set of sequences of each row, from lengths (rows, sequences)."""
    kinds: np.ndarray = (lengths > 0) @ (1 << np.arange(lengths.shape[1]))
    return kinds


WINDOW = 2**18
"""Rows that are shuffled and sorted by length together; so the memory that this takes does not grow
with the corpus."""
BLOCKS = 32
"""Runs of neighbouring rows that make a window; each epoch chooses others."""


def windows(rows: int, seed: int, epoch: int, window: int = WINDOW) -> Iterator[np.ndarray]:
    """Yields the row numbers of an epoch, `window` at a time: blocks of neighbours, which lie
    together on a disk, drawn from everywhere. A pure function of its arguments."""
    if rows <= window:
        yield np.arange(rows)
        return
    size = max(1, window // BLOCKS)
    starts = np.random.default_rng([seed, epoch]).permutation(np.arange(0, rows, size))
    for first in range(0, len(starts), BLOCKS):
        chosen = starts[first : first + BLOCKS]
        yield np.concatenate([np.arange(start, min(start + size, rows)) for start in chosen])


def window_batches(
    lengths: np.ndarray, budget: int, random: np.random.Generator
) -> list[np.ndarray]:
    """The batches of a window: rows with the same modalities and similar target and source lengths
    together; batches shuffled.

    Args:
        lengths: (rows, modalities + 1), the target last.
    """
    shuffled = random.permutation(len(lengths))
    keys = (lengths[:, :-1].sum(axis=1), lengths[:, -1], kinds_of(lengths[:, :-1]))
    order = shuffled[np.lexsort(tuple(key[shuffled] for key in keys))]
    batches = token_budget_batches(lengths, budget, order, targets=1)
    return [batches[index] for index in random.permutation(len(batches))]


def training_batches(
    lengths: np.ndarray,
    budget: int,
    seed: int,
    skip: int = 0,
    rows: np.ndarray | None = None,
    window: int = WINDOW,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (epoch, rows) without end, after skipping `skip` batches: a pure function of its
    arguments, so that a resumed run sees the same batches.

    Args:
        lengths: (rows, modalities + 1), the target last; may be on a disk.
        rows: those that are drawn, each as often as it is named; all if not given.
    """
    count = len(lengths) if rows is None else len(rows)
    for epoch in itertools.count():
        for number, places in enumerate(windows(count, seed, epoch, window)):
            drawn = places if rows is None else rows[places]
            random = np.random.default_rng([seed, epoch, number] if number else [seed, epoch])
            batches = window_batches(lengths[drawn], budget, random)
            for batch in batches[skip:]:
                yield epoch, drawn[batch]
            skip = max(0, skip - len(batches))


def sorted_batches(lengths: Sequence[int] | np.ndarray, budget: int) -> list[np.ndarray]:
    """Row numbers in batches of at most `budget` padded tokens, the longest rows first."""
    columns = np.asarray(lengths, dtype=np.int64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    order = np.lexsort((-columns.sum(axis=1), kinds_of(columns)))
    return token_budget_batches(columns, budget, order)


class Ragged:
    """Rows of ids of different lengths in one flat array, padded together on demand. The array may
    be on a disk."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values = values
        self.offsets = offsets

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = itertools.chain.from_iterable(rows)
        return cls(np.fromiter(flat, dtype=np.int64, count=int(offsets[-1])), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of some rows; takes no longer if there are many others."""
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def row(self, index: int) -> list[int]:
        ids: list[int] = self.values[self.offsets[index] : self.offsets[index + 1]].tolist()
        return ids

    def take(self, rows: np.ndarray) -> Ragged:
        """Only the given rows, in the given order."""
        lengths = self.lengths_of(rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(self.offsets[rows], lengths) + within], offsets)

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """The given rows as one int64 array (rows, longest), padded with PAD on the right."""
        lengths = self.lengths_of(rows)
        width = max(int(lengths.max(initial=0)), 1)
        columns = np.arange(width)
        index = self.offsets[rows][:, None] + columns
        present = columns < lengths[:, None]
        if not present.any():
            return np.full(present.shape, PAD, dtype=np.int64)
        values = self.values[np.where(present, index, 0)]
        return np.where(present, values, PAD).astype(np.int64, copy=False)
