from __future__ import annotations

import pytest

from pipelines.running.pace import RECENT, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def worked(pace: Pace, clock: Clock, steps: int, seconds: float, done: float = 0) -> float:
    """Does `steps` units of work that take `seconds` each."""
    for _ in range(steps):
        clock.now += seconds
        done += 1
        pace.reach(done)
    return done


def test_speed_is_that_of_recent_work() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.rate == 0
    pace.reach(0)
    assert pace.rate == 0
    done = worked(pace, clock, 600, 0.5)
    assert pace.rate == pytest.approx(2)
    worked(pace, clock, int(RECENT) + 10, 4, done)
    assert pace.rate == pytest.approx(0.25)


def test_what_was_done_before_a_resume_does_not_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.reach(5000)
    worked(pace, clock, 10, 2, 5000)
    assert pace.rate == pytest.approx(0.5)


def test_a_machine_that_slept_is_not_a_slow_one() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.reach(0)
    done = worked(pace, clock, 100, 1)
    clock.now += 1800
    done += 1
    pace.reach(done)
    assert pace.rate == pytest.approx(1, rel=0.02)
    worked(pace, clock, 100, 1, done)
    assert pace.rate == pytest.approx(1, rel=0.02)


def test_long_units_are_not_pauses() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.reach(0)
    worked(pace, clock, 20, 120)
    assert pace.rate == pytest.approx(1 / 120)


def test_regular_interruptions_as_validation_count() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.reach(0)
    done = 0.0
    for _ in range(20):  # 50 seconds of steps, 50 of validation
        done = worked(pace, clock, 50, 1, done)
        clock.now += 50
    done = worked(pace, clock, 50, 1, done)
    assert pace.rate == pytest.approx(0.5, rel=0.35)
