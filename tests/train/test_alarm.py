"""The alarm: silent on a healthy run, and not raised by a single bad moment."""

from __future__ import annotations

import pytest

from mrp.train.alarm import Alarm, Config

HEALTHY = {"held_out/rank_me": 40.0, "held_out/spread": 0.2, "held_out/loss_over_variance": 0.4}


def heard(alarm: Alarm, steps: range, *values: dict[str, float]) -> list[bool]:
    return [alarm.hear(step, each) is not None for step, each in zip(steps, values, strict=True)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank_me", 1.02), ("spread", 1e-4), ("loss_over_variance", 1.0), ("rank_me", float("nan"))],
)
def test_it_speaks_once_when_what_was_good_stays_bad(name: str, value: float) -> None:
    alarm = Alarm(Config(patience=3), warmup=10, steps=1000)
    bad = HEALTHY | {f"held_out/{name}": value}
    values = (HEALTHY, bad, bad, HEALTHY, bad, bad, bad, bad)
    assert heard(alarm, range(10, 18), *values) == [False] * 6 + [True, False]


def test_a_network_that_has_not_begun_to_learn_is_given_half_of_the_run() -> None:
    alarm = Alarm(Config(patience=2), warmup=10, steps=100)
    bad = HEALTHY | {"held_out/spread": 1e-5}
    assert heard(alarm, range(0, 60, 10), *[bad] * 6) == [False] * 6
    assert heard(alarm, range(60, 90, 10), bad, bad, bad) == [False, True, False]
    other = Alarm(Config(patience=2), warmup=10, steps=100)
    assert heard(other, range(0, 70, 10), *[bad] * 4, *[HEALTHY] * 3) == [False] * 7


def test_what_is_not_measured_raises_nothing() -> None:
    alarm = Alarm(Config(patience=1), warmup=0, steps=2)
    assert heard(alarm, range(1, 3), {"held_out/knn": 0.1}, HEALTHY) == [False, False]
