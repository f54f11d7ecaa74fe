"""Our learning rate against the official schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrp.schedules import half_cosine

CASE = json.loads((Path(__file__).parent / "cases" / "schedule" / "case.json").read_text())


def test_learning_rate_at_fractional_epochs_agrees() -> None:
    ours = [
        half_cosine(epoch, CASE["epochs"], CASE["warmup_epochs"], CASE["lr"], CASE["min_lr"])
        for epoch in CASE["at_epoch"]
    ]
    assert ours == pytest.approx(CASE["expected"], rel=1e-9, abs=1e-12)


def test_it_starts_at_zero_peaks_after_warm_up_and_ends_at_the_floor() -> None:
    assert half_cosine(0, 100, 10, 1.0, 0.1) == 0
    assert half_cosine(10, 100, 10, 1.0, 0.1) == 1.0
    assert half_cosine(100, 100, 10, 1.0, 0.1) == pytest.approx(0.1)
    assert half_cosine(0, 100, 0, 1.0) == 1.0
