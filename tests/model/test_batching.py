from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.batching import (
    Ragged,
    sorted_batches,
    token_budget_batches,
    training_batches,
    window_batches,
    windows,
)
from model.vocabulary import PAD

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80)


@given(LENGTHS, st.integers(16, 200), st.integers(0, 5))
def test_an_epoch_has_every_row_once_and_keeps_the_budget(
    pairs: list[tuple[int, int]], budget: int, seed: int
) -> None:
    lengths = np.array(pairs)
    batches = window_batches(lengths, budget, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    for batch in batches:
        padded = lengths[batch].max(axis=0).max() * len(batch)
        assert padded <= budget or len(batch) == 1


@given(st.integers(1, 500), st.integers(1, 300), st.integers(0, 3))
def test_the_windows_of_an_epoch_have_every_row_once(rows: int, window: int, epoch: int) -> None:
    parts = list(windows(rows, 7, epoch, window))
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    # At least 32 blocks make a window, so a few rows more than asked are the most.
    assert max(map(len, parts)) <= max(window, 32)


def test_windows_are_drawn_from_everywhere() -> None:
    first, again, other = (
        next(windows(100_000, seed, epoch, 3200)) for seed, epoch in ((1, 0), (1, 0), (1, 1))
    )
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(first) == 3200 and np.ptp(first) > 80_000
    assert (np.diff(first) == 1).sum() >= 3200 - 32, "blocks of neighbours"


@pytest.mark.parametrize("window", [10_000, 50])
@pytest.mark.parametrize("rows", [None, np.arange(0, 200, 3), np.repeat(np.arange(90), 2)])
def test_batches_depend_on_seed_and_epoch_alone(window: int, rows: np.ndarray | None) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, size=(200, 2))

    def first(seed: int, skip: int, count: int) -> list[list[int]]:
        stream = training_batches(lengths, 100, seed, skip, rows, window)
        stream = itertools.islice(stream, count)
        return [rows.tolist() for _, rows in stream]

    assert first(1, 0, 300) == first(1, 0, 300)
    assert first(1, 0, 300)[117:] == first(1, 117, 183)
    assert first(1, 0, 20) != first(2, 0, 20)
    drawn = sorted(np.arange(200) if rows is None else rows)
    epoch = itertools.takewhile(
        lambda batch: batch[0] == 0, training_batches(lengths, 100, 1, 0, rows, window)
    )
    assert sorted(row for _, batch in epoch for row in batch.tolist()) == drawn


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_sorted_batches_are_sorted(lengths: list[int]) -> None:
    order = np.concatenate(sorted_batches(lengths, 64))
    assert sorted(order.tolist()) == list(range(len(lengths)))
    ordered = np.array(lengths)[order]
    assert (np.diff(ordered) <= 0).all()


@given(st.lists(st.lists(st.integers(4, 99), max_size=6), min_size=1, max_size=8))
def test_ragged_is_the_rows_padded(rows: list[list[int]]) -> None:
    ragged = Ragged.of(rows)
    assert [ragged.row(index) for index in range(len(rows))] == rows
    padded = ragged.padded(np.arange(len(rows)))
    width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    assert padded.tolist() == [row + [PAD] * (width - len(row)) for row in rows]


def test_padding_is_counted_by_modality() -> None:
    """Text, picture and sound are concatenated, each padded separately."""
    lengths = np.array([[10, 1, 3], [1, 10, 3]])
    assert len(token_budget_batches(lengths, 40, np.arange(2), targets=1)) == 1
    assert len(token_budget_batches(lengths, 39, np.arange(2), targets=1)) == 2


def test_rows_of_other_modalities_never_share_a_batch() -> None:
    lengths = np.array([[10, 0, 3], [10, 0, 3], [0, 10, 3], [10, 10, 3], [0, 10, 3]])
    batches = token_budget_batches(lengths, 1000, np.array([0, 1, 2, 4, 3]), targets=1)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 4], [3]]
    drawn = window_batches(lengths, 1000, np.random.default_rng(0))
    for grouping in (drawn, sorted_batches(lengths[:, :-1], 1000)):
        assert sorted(sorted(batch.tolist()) for batch in grouping) == [[0, 1], [2, 4], [3]]


def test_taken_rows_are_the_rows() -> None:
    ragged = Ragged.of([[1, 2], [], [3], [4, 5, 6]])
    taken = ragged.take(np.array([3, 1, 0, 3]))
    assert [taken.row(n) for n in range(4)] == [[4, 5, 6], [], [1, 2], [4, 5, 6]]
