"""Series of readings: what is read, what is refused, and how the network sees gaps."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from model.modalities.media import MediaError
from model.modalities.series.embedding import StepEmbedding
from model.modalities.series.files import decode
from model.modalities.series.modality import SERIES, held
from model.modalities.series.preview import preview
from model.modalities.series.settings import SeriesSettings
from model.modalities.sources import Frames

TWO = SeriesSettings(channels=2, max_steps=4)


def test_readings_are_the_numbers_and_gaps_are_nan() -> None:
    readings = decode(b"[[1, 2.5], [null, -3], [NaN, 1e30]]", TWO)
    assert readings.dtype == np.float32
    expected = [[1, 2.5], [math.nan, -3], [math.nan, 1e30]]
    np.testing.assert_array_equal(readings, np.array(expected, dtype=np.float32))
    alone = decode(b"[1, null, 3]", SeriesSettings(channels=1))
    assert alone.shape == (3, 1) and np.isnan(alone[1, 0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("7", "not a series"),
        ('{"a": 1}', "not a series"),
        ("[[1, 2]", "not a series"),
        ("[" * 4000, "not a series"),
        ("[" * 100_000, "too long"),
        ("[]", "no readings"),
        ("[[null, null]]", "no readings"),
        ("[[1, 2], [1]]", "wrong number of channels"),
        ("[1, 2]", "wrong number of channels"),
        ('[["1", 2]]', "not a number"),
        ("[[true, 2]]", "not a number"),
        ("[[1e31, 2]]", "not a number"),
        ("[[Infinity, 2]]", "not a number"),
        (f"[[{'9' * 400}, 2]]", "not a number"),
        (json.dumps([[1, 2]] * 5), "too long"),
    ],
)
def test_what_is_no_series_is_told(content: str, reason: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode(content.encode(), TWO)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("cell", "content"),
    [
        ([[1, None]], b"[[1, null]]"),
        ("  [1, 2]", b"  [1, 2]"),
        ("readings/1.json", None),
        (None, None),
        (b"[1]", None),
    ],
)
def test_a_cell_holds_a_series_or_names_a_file(cell: Any, content: bytes | None) -> None:
    assert held(cell) == content


def test_a_gap_is_seen_as_the_mean_and_told_apart_from_it() -> None:
    settings = SeriesSettings(channels=2, mean=(10.0, 0.0), deviation=(2.0, 1.0))
    values = np.array([[12, np.nan], [10, 3], [np.nan, 0]], dtype=np.float32)
    rows = Frames(values, np.array([0, 2, 3]), np.array([0, 1]), np.ones(2, int), settings, SERIES)
    batch, lengths = rows.padded(np.arange(2))
    assert lengths.tolist() == [2, 1]
    expected = [[[1, 0, 1, 0], [0, 3, 1, 1]], [[0, 0, 0, 1], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(batch, np.array(expected, dtype=np.float32))


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    embedding = StepEmbedding({"series": 4}, 16, 32).eval()
    steps = torch.randn(1, 5, 4)
    alone, present = embedding(steps, torch.tensor([5]))
    padded, valid = embedding(torch.cat([steps, torch.zeros(1, 3, 4)], dim=1), torch.tensor([5]))
    assert present.all() and valid[0].tolist() == [True] * 5 + [False] * 3
    torch.testing.assert_close(padded[:, :5], alone)


def test_a_drawing_is_broken_at_gaps_and_holds_nothing_but_numbers() -> None:
    drawing = preview(b"[[1, 5], [null, 6], [3, null], [4, 9]]")
    assert drawing is not None and drawing.kind == "image/svg+xml"
    text = drawing.data.decode()
    assert text.count("<path") == 2
    first, second = text.split("<path")[1:]
    assert first.count("M") == 2 and first.count("L") == 1  # 1, gap, 3 – 4
    assert second.count("M") == 2 and second.count("L") == 1  # 5 – 6, gap, 9
    for wrong in (b"", b"{}", b"[]", b"[[]]", b"[[null]]", b'["<script>"]', b"\xff"):
        assert preview(wrong) is None
