"""Whether one set of weights is better than another: from answers on the same images, from draws, or from seeds.

Every interval has 95 % confidence. A difference is that of the first minus the second. Where images belong to `groups`
(`data.group`), intervals follow from the spread over groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.data.order import Ints, permute
from mrp.evaluate.interval import Z_95, Interval, by_group, effective, half_width, student_95, with_groups

Bools = NDArray[np.bool_]
Classes = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]
_PARTS = 0x67726F75  # of the hashes that images, or groups of them, are put into parts by


def mcnemar(first: Bools, second: Bools, groups: Ints | None = None) -> float:
    """Returns the exact two-sided p-value of McNemar's test: that both are equally often alone in being right.

    With groups it is not below that of a t-test over groups, one of which only the first gets right and one only the
    second beside those that there are.
    """
    wins, losses = int((first & ~second).sum()), int((~first & second).sum())
    fewer, total = min(wins, losses), wins + losses
    if total == 0:
        return 1.0
    from scipy.special import stdtr
    from scipy.stats import binom

    exact = min(1.0, 2 * float(binom.cdf(fewer, total, 0.5)))
    if groups is None:
        return exact
    difference, groups = with_groups(first.astype(np.float64) - second, groups, 1.0, -1.0)
    spread = by_group(difference, groups)
    t = abs(float(difference.mean())) * math.sqrt(len(spread)) / float(spread.std(ddof=1))
    return max(exact, 2 * float(stdtr(effective(groups) - 1, -t)))


def paired(first: Bools, second: Bools, classes: Classes | None = None, groups: Ints | None = None) -> Interval:
    """Returns the difference of two accuracies that were counted on the same images.

    The interval is Bonett and Price's (2012): Wald's after adding one image that only the first and one that only the
    second gets right, so that it has a width even where the two agree. With `classes`, the accuracies are means over
    classes, and the two images are spread over these. With `groups` it is Student's over groups, after adding one group
    that only the first and one that only the second gets right.
    """
    assert first.shape == second.shape, "the answers are about the same images"
    wins, losses, images = (_per_class(part, classes) for part in (first & ~second, ~first & second, first | True))
    if groups is not None:
        return _paired_over_groups(float(((wins - losses) / images).mean()), first, second, classes, groups)
    added = 1 / len(images)
    total = images + 2 * added
    win, lose = (wins + added) / total, (losses + added) / total
    variance = (win + lose - (win - lose) ** 2) / total
    centre, half = float((win - lose).mean()), Z_95 * math.sqrt(float(variance.sum())) / len(images)
    return Interval(float(((wins - losses) / images).mean()), centre - half, centre + half)


def mean_of(scores: Scores, groups: Ints | None = None) -> Interval:
    """Returns the mean of a number that each test image has, with the normal interval."""
    mean, half = float(scores.mean()), half_width(scores, groups)
    return Interval(mean, mean - half, mean + half)


def mean_per_class(right: Bools, classes: Classes, groups: Ints | None = None) -> Interval:
    """Returns the mean over classes of the accuracy in each, with Agresti and Coull's interval spread over classes."""
    hits, images = _per_class(right, classes), _per_class(right | True, classes)
    mean, added = float((hits / images).mean()), Z_95**2 / len(images)
    shares, totals = (hits + added / 2) / (images + added), images + added
    half = Z_95 * math.sqrt(float((shares * (1 - shares) / totals).sum())) / len(images)
    if groups is not None:
        half = max(half, half_width(*with_groups(_weighted(right, classes), groups, float(mean < 0.5))))
    centre = float(shares.mean())
    return Interval(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)))


def pseudo_values(
    images: int, statistic: Callable[[Ints], float], parts: int = 10, groups: Ints | None = None
) -> tuple[float, ...]:
    """Returns one value of a statistic of all images per part of them, from leaving each part out (Tukey, 1958).

    No part divides a group of images, so there are no more parts than groups. One part alone tells nothing.

    Their spread tells how sure the statistic is. Their mean is another number than the statistic where that depends on
    how many images there are, as a rank does. Of two models they are about the same parts, so that `over_draws`
    compares them.
    """
    rows = np.arange(images)
    unit = rows if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(unit.max()) + 1
    parts = min(parts, units)
    if parts < 2:
        return ()
    part = permute(unit, units, _PARTS) % parts
    whole = statistic(rows)
    return tuple(parts * whole - (parts - 1) * statistic(rows[part != one]) for one in range(parts))


def over_draws(first: Sequence[float], second: Sequence[float], value: float) -> Interval:
    """Returns a difference with Student's interval around it, from what both came to on the same draws.

    Draws are of training images, whose mean is the value; or they are `pseudo_values` of groups of test images. Then
    the interval is about the difference that sets of as many images have on average.
    """
    _, low, high = over_seeds([one - other for one, other in zip(first, second, strict=True)])
    half = (high - low) / 2
    return Interval(value, value - half, value + half)


def over_draws_and_images(
    first: tuple[Sequence[float], Sequence[float]], second: tuple[Sequence[float], Sequence[float]], value: float
) -> Interval:
    """Returns a difference with an interval that speaks of other draws of training images and of other test images.

    Both have come to numbers for the same draws, as means over the test images, and for the same groups of test images
    (`pseudo_values`), as means over the draws. The two variances are added, with Welch's degrees of freedom.
    """
    return _welch(value, *([a - b for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)))


def of_draws_and_images(right: Bools, groups: Ints | None = None) -> Interval:
    """Returns the share of right answers (draws, test images), with such an interval."""
    draws, images = right.mean(1), by_group(right.mean(0), groups)
    if groups is not None and len(images) < 2:
        return Interval(float(right.mean()), 0.0, 1.0)
    found = _welch(float(right.mean()), draws, images if len(images) > 1 else images.repeat(2))
    return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))


def over_seeds(values: Sequence[float]) -> Interval:
    """Returns the mean over seeds, with Student's interval."""
    mean = float(np.mean(values))
    half = student_95(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def between_seeds(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns the difference of two means over seeds, with Welch's interval."""
    return _welch(float(np.mean(first) - np.mean(second)), first, second)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns Spearman's rank correlation; NaN where one side has a single value."""
    from scipy.stats import rankdata

    one, two = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    spread = math.sqrt(float((one**2).sum() * (two**2).sum()))
    return float((one * two).sum()) / spread if spread else math.nan


def spearman(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns the rank correlation of four pairs or more, with Bonett and Wright's interval (2000).

    Ranks that agree throughout would have no interval. They are taken for halfway to the next lower correlation that so
    many pairs can have. NaN where one side has a single value.
    """
    count = len(first)
    assert count == len(second) >= 4, "the interval needs four pairs"
    value = rank_correlation(first, second)
    if math.isnan(value):
        return Interval(value, value, value)
    most = 1 - 6 / (count * (count**2 - 1))
    inner = max(-most, min(most, value))
    half = Z_95 * math.sqrt((1 + inner**2 / 2) / (count - 3))
    low, high = (math.tanh(math.atanh(inner) + sign * half) for sign in (-1, 1))
    return Interval(value, min(value, low), max(value, high))


def unpaired(first: Interval, second: Interval) -> Interval:
    """Returns the difference of two values of which only the intervals are known, by Newcombe's rule (1998)."""
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above)


def _welch(value: float, *samples: Sequence[float] | Scores) -> Interval:
    """Returns a value with the interval of a sum or difference of the means of independent samples."""
    shares = [float(np.var(values, ddof=1)) / len(values) for values in samples]
    total = sum(shares)
    if total == 0:
        return Interval(value, value, value)
    spread = sum(share**2 / (len(values) - 1) for share, values in zip(shares, samples, strict=True))
    half = student_95(total**2 / spread) * math.sqrt(total)
    return Interval(value, value - half, value + half)


def _paired_over_groups(value: float, first: Bools, second: Bools, classes: Classes | None, groups: Ints) -> Interval:
    less = _weighted(first, classes) - _weighted(second, classes)
    more, groups = with_groups(less, groups, 1.0, -1.0)
    centre, half = float(more.mean()), half_width(more, groups)
    return Interval(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def _weighted(right: Bools, classes: Classes | None) -> Scores:
    """Returns numbers of which the mean over images is the share of right answers, or with classes that over these."""
    if classes is None:
        return right.astype(np.float64)
    _, number, images = np.unique(classes, return_inverse=True, return_counts=True)
    return np.asarray(right * (len(right) / (len(images) * images[number])), np.float64)


def _per_class(marked: Bools, classes: Classes | None) -> NDArray[np.float64]:
    """Returns how many images are marked in each class that has any, or in all of them together."""
    if classes is None:
        return np.array([marked.sum()], np.float64)
    _, numbers = np.unique(classes, return_inverse=True)
    return np.bincount(numbers, weights=marked.astype(np.float64)).astype(np.float64)
