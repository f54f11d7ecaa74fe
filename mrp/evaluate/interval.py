"""The confidence interval of an accuracy that was counted on a number of samples."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.order import Ints

Z_95 = 1.959963984540054  # the two-sided 95 % quantile of the normal distribution


class Interval(NamedTuple):
    """An accuracy, and the bounds between which the true one lies with 95 % confidence."""

    accuracy: float
    low: float
    high: float


def share_of(right: Any, groups: Ints | None = None) -> Interval:
    """Returns the share of right answers with Wilson's interval.

    Answers of one group are not independent: together they are worth fewer than they are. They are taken for as many
    independent answers as would make the share as uncertain as it is over groups (Korn and Graubard, 1998); for as many
    as there are groups, where all are right or all are wrong.
    """
    answers = np.asarray(right, np.float64)
    share = wilson(int(answers.sum()), len(answers))
    if groups is None:
        return share
    worth, half = float(len(np.unique(groups))), half_width(answers, groups)
    if math.isinf(half):
        return Interval(share.accuracy, 0.0, 1.0)
    if 0 < share.accuracy < 1:
        worth = min(len(answers), share.accuracy * (1 - share.accuracy) * (Z_95 / half) ** 2) if half else len(answers)
    return Interval(share.accuracy, *wilson(share.accuracy * worth, worth)[1:])


def half_width(values: NDArray[np.float64], groups: Ints | None) -> float:
    """Returns half the width of the interval of a mean over images: the normal one, and Student's over groups.

    One image, or one group, tells nothing of others.
    """
    independent = by_group(values, groups)
    if len(independent) < 2:
        return math.inf
    quantile = Z_95 if groups is None else student_95(len(independent) - 1)
    return quantile * float(independent.std(ddof=1)) / math.sqrt(len(independent))


def by_group(values: NDArray[np.float64], groups: Ints | None) -> NDArray[np.float64]:
    """Returns one value per group, or the values where there are no groups: independent ones with the same mean.

    The value of a group is the mean and how far its images move it, times the number of groups. So a large group counts
    for more, as it does in the mean.
    """
    if groups is None:
        return values
    _, number = np.unique(groups, return_inverse=True)
    moved = np.bincount(number, values - values.mean())
    return np.asarray(values.mean() + len(moved) / len(values) * moved, np.float64)


def student_95(freedom: float) -> float:
    """Returns the two-sided 95 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def wilson(correct: float, num: float) -> Interval:
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
