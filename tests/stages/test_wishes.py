"""What a target's value says of other values, and which options fit together."""

from __future__ import annotations

import numpy as np
import pytest

from model.wishes import Wishes
from stages.train import Train, TrainConfig
from stages.wishes import alike_in


def test_numbers_are_alike_within_a_distance() -> None:
    wishes = Wishes({"level": ("1", "2", "4", "10"), "style": ("formal", "informal")})
    alike = alike_in(wishes, {"level": 2, "style": 0})
    expected = np.eye(6, dtype=bool)
    for one, other in ((0, 1), (1, 2)):
        expected[one, other] = expected[other, one] = True
    assert np.array_equal(alike, expected)


def test_only_numbers_can_be_near() -> None:
    wishes = Wishes({"style": ("formal", "informal")})
    with pytest.raises(ValueError, match=r"within needs whole numbers.*'formal'"):
        alike_in(wishes, {"style": 1})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wishes": {"level": {"column": "level", "within": 1}}}, "within is for a head"),
        ({"tell_wishes": 1}, "less than 1"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig.model_validate({"model": {"use": "transformer"}, **options})


def test_no_steps_are_for_a_head_alone() -> None:
    head = {"wishes": {"level": {"column": "level"}}, "tell_wishes": 0}
    Train(TrainConfig.model_validate({"steps": 0, **head})).check({"features", "start"})
    for options in ({}, {"wishes": head["wishes"]}, {**head, "model": {"use": "transformer"}}):
        with pytest.raises(ValueError, match="steps: 0 needs start"):
            TrainConfig.model_validate({"steps": 0, **options})
