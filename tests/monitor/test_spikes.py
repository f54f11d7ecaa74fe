"""A spike is named, an ordinary ripple or a falling curve is not."""

from __future__ import annotations

import math

import numpy as np

from mrp.monitor.journal import Spikes


def heard(losses: list[float], before: list[float] | None = None) -> dict[int, float]:
    said: list[str] = []
    spikes = Spikes({"step": 0, "loss": loss} for loss in reversed(before or []))
    found = {step: spikes.check(step, {"loss": loss}, said.append) for step, loss in enumerate(losses)}
    named = {step: values["spike"] for step, values in found.items() if values}
    assert [int(line.split("step ")[1].split()[0]) for line in said] == list(named)
    return named


def falling(count: int, noise: float = 0.01) -> list[float]:
    generator = np.random.default_rng(0)
    return [float(1 / (1 + step / 50) + noise * generator.standard_normal()) for step in range(count)]


def test_a_falling_noisy_curve_has_no_spike() -> None:
    assert not heard(falling(500))


def test_a_jump_is_a_spike_and_those_after_it_are_judged_by_the_curve_before() -> None:
    losses = falling(200)
    losses[120] = losses[121] = 5.0
    assert set(heard(losses)) == {120, 121}


def test_a_flat_curve_does_not_make_a_spike_of_a_ripple() -> None:
    assert not heard([1.0] * 50 + [1.05])
    assert set(heard([1.0] * 50 + [2.0])) == {50}


def test_nothing_is_unusual_at_the_start_and_a_resumed_run_knows_its_past() -> None:
    assert not heard([1.0, 100.0])
    assert set(heard([100.0], before=falling(50))) == {0}


def test_a_resumed_run_goes_through_no_more_of_its_past_than_it_needs() -> None:
    past = iter([{"loss": 1.0}] * 1000)
    Spikes(past)
    assert len([*past]) == 900


def test_what_is_not_finite_is_the_guards_affair() -> None:
    assert not heard([*falling(50), math.nan, math.inf])
    assert not Spikes([{"loss": "nan"}, {"lr": 1.0}]).check(0, {"lr": 1.0}, print)
