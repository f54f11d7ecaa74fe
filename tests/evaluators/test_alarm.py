"""The alarm: silent on a healthy run, and not raised by a single bad moment."""

from __future__ import annotations

import pytest

from mrp.evaluate.config import Diagnose
from mrp.evaluators.diagnose import Alarm

HEALTHY = {"features/rank_me": 40.0, "features/spread": 0.2, "features/loss_over_variance": 0.4}


def raised(alarm: Alarm, steps: range, *values: dict[str, float]) -> list[bool]:
    return [alarm.check(step, each) is not None for step, each in zip(steps, values, strict=True)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank_me", 1.02), ("spread", 1e-4), ("loss_over_variance", 1.0), ("rank_me", float("nan"))],
)
def test_it_speaks_once_when_a_threshold_stays_crossed(name: str, value: float) -> None:
    alarm = Alarm(Diagnose(patience=3), start=10)
    bad = HEALTHY | {f"features/{name}": value}
    values = (bad, bad, HEALTHY, bad, bad, bad, bad)
    assert raised(alarm, range(10, 17), *values) == [False] * 5 + [True, False]


def test_the_beginning_does_not_count() -> None:
    alarm = Alarm(Diagnose(patience=2), start=100)
    bad = HEALTHY | {"features/spread": 1e-5}
    assert raised(alarm, range(0, 130, 10), *[bad] * 13) == [False] * 11 + [True, False]


def test_what_is_not_measured_raises_nothing() -> None:
    alarm = Alarm(Diagnose(patience=1), start=0)
    assert raised(alarm, range(1, 3), {"features/knn": 0.1}, HEALTHY) == [False, False]
