from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.batching import (
    Ragged,
    epoch_batches,
    sorted_batches,
    token_budget_batches,
    training_batches,
)
from model.vocabulary import PAD

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=80)


@given(LENGTHS, st.integers(16, 200), st.integers(0, 5))
def test_an_epoch_has_every_row_once_and_keeps_the_budget(
    pairs: list[tuple[int, int]], budget: int, epoch: int
) -> None:
    lengths = np.array(pairs)
    batches = epoch_batches(lengths, budget, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    for batch in batches:
        padded = lengths[batch].max(axis=0).max() * len(batch)
        assert padded <= budget or len(batch) == 1


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, size=(200, 2))

    def first(seed: int, skip: int, count: int) -> list[list[int]]:
        stream = itertools.islice(training_batches(lengths, 100, seed, skip), count)
        return [rows.tolist() for _, rows in stream]

    assert first(1, 0, 300) == first(1, 0, 300)
    assert first(1, 0, 300)[117:] == first(1, 117, 183)
    assert first(1, 0, 20) != first(2, 0, 20)


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
    for grouping in (epoch_batches(lengths, 1000, 0, 0), sorted_batches(lengths[:, :-1], 1000)):
        assert sorted(sorted(batch.tolist()) for batch in grouping) == [[0, 1], [2, 4], [3]]


def test_taken_rows_are_the_rows() -> None:
    ragged = Ragged.of([[1, 2], [], [3], [4, 5, 6]])
    taken = ragged.take(np.array([3, 1, 0, 3]))
    assert [taken.row(n) for n in range(4)] == [[4, 5, 6], [], [1, 2], [4, 5, 6]]
