"""The alarm: silent on a healthy run, and not raised by a single bad moment."""

from __future__ import annotations

import pytest

from mrp.train.alarm import Alarm, Config

HEALTHY = {"held_out/rank_me": 40.0, "held_out/spread": 0.2, "held_out/loss_over_variance": 0.4}


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank_me", 1.02), ("spread", 1e-4), ("loss_over_variance", 1.0), ("rank_me", float("nan"))],
)
def test_it_speaks_once_when_a_threshold_stays_crossed(name: str, value: float) -> None:
    alarm = Alarm(Config(patience=3))
    bad = HEALTHY | {f"held_out/{name}": value}
    assert [alarm.hear(values) for values in (bad, bad, HEALTHY, bad, bad)] == [None] * 5
    sentence = alarm.hear(bad)
    assert sentence is not None
    assert name in sentence
    assert alarm.hear(bad) is None


def test_what_is_not_measured_raises_nothing() -> None:
    alarm = Alarm(Config(patience=1))
    assert alarm.hear({"held_out/knn": 0.1}) is None
    assert alarm.hear(HEALTHY) is None
