"""The confidence interval of an accuracy that was counted on a number of samples."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.order import Ints

_FEWEST_GROUPS = 1.5  # of equal size
_WORTHLESS = 1e-3  # independent answers
Z_95 = 1.959963984540054  # the two-sided 95 % quantile of the normal distribution


class Interval(NamedTuple):
    """A value, and the bounds between which the true one lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def of_accuracy(self) -> dict[str, float]:
        """Returns it as accuracies are kept in a file."""
        return {"accuracy": self.value, "low": self.low, "high": self.high}


def share_of(right: Any, groups: Ints | None = None) -> Interval:
    """Returns the share of right answers with Wilson's interval.

    Answers of one group are not independent: together they are worth fewer than they are. They are taken for as many
    independent answers as would make the share as uncertain as it is over groups (Korn and Graubard, 1998), where one
    more group stands for those that have not been seen: all its answers are of the rarer kind.
    """
    answers = np.asarray(right, np.float64)
    share = wilson(int(answers.sum()), len(answers))
    if groups is None:
        return share
    if len(np.unique(groups)) < 2:
        return Interval(share.value, 0.0, 1.0)
    more, more_groups = with_groups(answers, groups, float(share.value < 0.5))
    mean, half = float(more.mean()), half_width(more, more_groups)
    worth = min(len(answers), mean * (1 - mean) * (Z_95 / half) ** 2)
    if worth < _WORTHLESS:
        return Interval(share.value, 0.0, 1.0)
    return Interval(share.value, *wilson(share.value * worth, worth)[1:])


def with_groups(values: NDArray[np.float64], groups: Ints, *more: float) -> tuple[NDArray[np.float64], Ints]:
    """Returns the values and their groups, and one more group of the mean size for each further value."""
    of = np.unique(groups, return_inverse=True)[1].reshape(-1)
    count = int(of.max()) + 1
    size = max(1, round(len(values) / count))
    return np.append(values, np.repeat(more, size)), np.append(of, np.repeat(count + np.arange(len(more)), size))


def half_width(values: NDArray[np.float64], groups: Ints | None) -> float:
    """Returns half the width of the interval of a mean over images: the normal one, or Student's over groups.

    Its degrees of freedom are those of as many equal groups as would be as unequal in sum (Kish's number), less one.
    One image, or one group, tells nothing of others, nor do groups that are worth fewer than two.
    """
    independent = by_group(values, groups)
    if len(independent) < 2 or (groups is not None and effective(groups) < _FEWEST_GROUPS):
        return math.inf
    quantile = Z_95 if groups is None else student_95(effective(groups) - 1)
    return quantile * float(independent.std(ddof=1)) / math.sqrt(len(independent))


def effective(groups: Ints) -> float:
    """Returns how many groups of equal size these are worth: fewer than they are where a few hold most images."""
    sizes = np.unique(groups, return_counts=True)[1]
    return float(len(groups)) ** 2 / float((sizes.astype(np.float64) ** 2).sum())


def by_group(values: NDArray[np.float64], groups: Ints | None) -> NDArray[np.float64]:
    """Returns one value per group, or the values where there are no groups, whose spread is that of the mean.

    They are the jackknife's: how far the mean moves where a group is left out, times the number of groups.
    """
    if groups is None:
        return values
    of = np.unique(groups, return_inverse=True)[1].reshape(-1)
    sums, sizes, mean = np.bincount(of, values), np.bincount(of), float(values.mean())
    if len(sizes) < 2:
        return np.array([mean])
    without = (values.sum() - sums) / (len(values) - sizes)
    return np.asarray(len(sizes) * mean - (len(sizes) - 1) * without, np.float64)


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
