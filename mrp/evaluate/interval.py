"""The confidence interval of an accuracy that was counted on a number of samples."""

from __future__ import annotations

import math
from typing import NamedTuple

from mrp.config import ConfigError

Z_95 = 1.959963984540054  # the two-sided 95 % quantile of the normal distribution


class Interval(NamedTuple):
    """An accuracy, and the bounds between which the true one lies with 95 % confidence."""

    accuracy: float
    low: float
    high: float


def wilson(correct: int, num: int) -> Interval:
    """Returns Wilson's score interval, which never leaves [0, 1] and has a width even at 0 and 1."""
    assert 0 <= correct <= num, (correct, num)
    if num == 0:
        raise ConfigError("an accuracy needs at least one test sample; the test set is empty")
    share, slack = correct / num, Z_95**2 / num
    centre = (share + slack / 2) / (1 + slack)
    half = math.sqrt(share * (1 - share) * slack + slack**2 / 4) / (1 + slack)
    # At 0 and 1 a bound meets the proportion exactly; rounding must not push it past.
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def in_percent(share: float, digits: int = 1) -> str:
    """Returns a share in percent, with up to three digits more where it would be 100 and is not all."""
    every = (f"{100 * share:.{digits + more}f}" for more in range(4 if share < 1 - 1e-9 else 1))
    return next((text for text in every if float(text) < 100), f"{100 * share:.{digits}f}")
