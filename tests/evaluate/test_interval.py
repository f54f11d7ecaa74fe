"""Wilson's interval against the equation it solves and against printed values."""

from __future__ import annotations

import math

import pytest

from mrp.evaluate.interval import Z_95, in_percent, wilson


@pytest.mark.parametrize(("correct", "num"), [(1, 3), (8, 10), (50, 100), (9000, 10000)])
def test_bounds_solve_the_score_equation(correct: int, num: int) -> None:
    accuracy, low, high = wilson(correct, num)
    assert accuracy == correct / num
    for bound in (low, high):
        assert abs(accuracy - bound) == pytest.approx(Z_95 * math.sqrt(bound * (1 - bound) / num))
    assert low < accuracy < high


def test_printed_values() -> None:
    assert wilson(8, 10)[1:] == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson(0, 10)[1:] == pytest.approx((0.0, 0.2775), abs=5e-5)


@pytest.mark.parametrize("num", [1, 7, 397, 10000])
def test_nothing_and_everything_correct(num: int) -> None:
    nothing, everything = wilson(0, num), wilson(num, num)
    assert nothing.low == 0.0 < nothing.high
    assert everything.low < 1.0 == everything.high


def test_empty_test_set() -> None:
    with pytest.raises(ValueError, match="test set is empty"):
        wilson(0, 0)


@pytest.mark.parametrize(
    ("share", "text"), [(0.63056, "63.1"), (0.9996, "99.96"), (0.99999, "99.999"), (1.0, "100.0"), (1 - 1e-12, "100.0")]
)
def test_almost_all_is_not_shown_as_all(share: float, text: str) -> None:
    assert in_percent(share) == text
