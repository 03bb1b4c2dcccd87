"""Rows on a disk give the batches that rows in memory give, whatever they consist of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from model.batching import Ragged
from model.configuration import TrainingConfig
from model.modalities.image.settings import ImageSettings
from model.modalities.known import MEDIA
from model.modalities.sources import Frames, SourceRows
from model.training.packed import Packer, packed
from model.training.rows import TrainingRows

IMAGES = ImageSettings(
    resize=8, crop=8, patch=4, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.1)
)  # fmt: skip


def corpus(count: int, seed: int) -> TrainingRows:
    """Texts, pictures with up to three variants, and both."""
    random = np.random.default_rng(seed)

    def lines(shortest: int) -> Ragged:
        lengths = random.integers(shortest, 9, count)
        return Ragged.of([random.integers(4, 90, length).tolist() for length in lengths])

    text = lines(0)
    counts = random.integers(0, 4, count)
    counts[text.lengths == 0] = 2
    kind = np.dtype(MEDIA["image"].stored)
    values = random.integers(0, 200, (int(counts.sum()) * 4, IMAGES.features)).astype(kind)
    order = random.permutation(count)  # rows do not stand in the order of their pictures
    first = np.empty(count, np.int64)
    first[order] = counts[order].cumsum() - counts[order]
    frames = Frames(values, np.arange(0, len(values) + 1, 4), first, counts, IMAGES, MEDIA["image"])
    source = SourceRows(text, {"image": frames}, random.integers(0, 2, count))
    tasks = ["few.lengths" if n % 5 == 0 else "many" for n in range(count)]
    return TrainingRows(source, lines(1), tasks, random.integers(1, 4, count))


def shares(rows: TrainingRows, cuts: list[int]) -> list[TrainingRows]:
    assert rows.times is not None
    times = rows.times
    return [
        TrainingRows(
            rows.source.take(part),
            rows.target.take(part),
            [rows.tasks[n] for n in part],
            times[part],
        )
        for part in np.split(np.arange(len(rows)), cuts)
    ]


@pytest.mark.parametrize("mix", [{}, {"few.lengths": 0.5, "many": 1.0}])
@pytest.mark.parametrize("cuts", [[], [1, 40, 40, 77]])
def test_packed_rows_give_the_same_steps(
    tmp_path: Path, mix: dict[str, float], cuts: list[int]
) -> None:
    rows = corpus(90, 3)
    packer = Packer(tmp_path, mix)
    for share in shares(rows, cuts):
        packer.add(share)
    stored = packed(packer.finish(), {"image": IMAGES})
    assert len(stored) == 90 and stored.lengths.tolist() == rows.lengths.tolist()
    config = TrainingConfig(steps=1, batch_tokens=200, mix=mix, parts=2)
    steps = zip(stored.steps(config, 1), rows.steps(config, 1), strict=True)
    for mine, theirs in itertools.islice(steps, 40):
        for part, other in zip(mine, theirs, strict=True):
            assert all(map(np.array_equal, part, other))
            assert stored.tokens(part) == rows.tokens(other)
            source, target = stored.batch(part.rows, part.turns)
            expected, wanted = rows.batch(part.rows, part.turns)
            assert target.equal(wanted) and target.dtype == wanted.dtype
            assert list(source) == list(expected)
            for name in source:
                assert source[name].equal(expected[name])
                assert source[name].dtype == expected[name].dtype


def test_a_mix_of_other_tasks_is_refused(tmp_path: Path) -> None:
    packer = Packer(tmp_path, {"few.lengths": 1.0, "none": 1.0})
    packer.add(corpus(10, 1))
    with pytest.raises(
        ValueError, match=r"names few\.lengths, none; the training rows are of few\.lengths, many"
    ):
        packer.finish()
