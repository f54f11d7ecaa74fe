"""How well scores tell which tags an image has: average precision and the area under the ROC curve, tag by tag.

Images of which nobody knows whether they have a tag do not count for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.order import Ints
from mrp.evaluate.interval import Z_95, by_group, effective, student_95, with_groups
from mrp.evaluate.measures import MEASURES, Number, told
from mrp.evaluate.statistics import pseudo_values

TITLES = {"mean_ap": "mean average precision", "mean_auroc": "mean AUROC"}

Floats = NDArray[np.float64]
Tags = NDArray[np.int8]  # images, tags: 1 has it, 0 has it not, -1 nobody knows
Area = Callable[[Floats, NDArray[np.bool_]], Floats]  # the area with all images, and then without each one in turn


def average_precision(scores: Floats, has: NDArray[np.bool_]) -> Floats:
    """Returns the mean over the images that have a tag of the precision down to each; then that without each image.

    Images of equal score are taken together, so that their order does not matter.
    """
    ordered = np.argsort(-scores, kind="stable")
    ends = np.searchsorted(-scores[ordered], -scores[ordered], side="right")  # images down to the last of equal score
    starts = np.searchsorted(-scores[ordered], -scores[ordered], side="left")
    right = has[ordered].astype(np.float64)
    hits = np.cumsum(right)[ends - 1]
    count = right.sum()
    without = np.empty(len(scores))
    # What the images from here on, with all that share this one's score, sum up to once an image above them is gone.
    fewer = np.maximum(ends - 1, 1)

    def below(terms: Floats) -> Floats:
        return np.cumsum((right * terms)[::-1])[::-1][starts]

    above = (right * hits / ends).sum() - below(hits / ends)
    negative = (above + below(hits / fewer)) / count
    positive = (above + below((hits - 1) / fewer) - (hits - 1) / fewer) / max(count - 1, 1)
    without[ordered] = np.where(right > 0, positive, negative)
    return np.concatenate([[(right * hits / ends).sum() / count], without])


def auroc(scores: Floats, has: NDArray[np.bool_]) -> Floats:
    """Returns how often an image that has a tag scores above one that has it not; then that without each image.

    Equal scores count one half.
    """
    ordered = np.sort(scores), np.sort(scores[has]), np.sort(scores[~has])

    def below(others: Floats) -> Floats:
        return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / 2

    _, positives, negatives = ordered
    won = np.where(has, below(negatives), len(positives) - below(positives))  # of the pairs that an image is in
    total, pairs = won[has].sum(), len(positives) * len(negatives)
    left = np.where(has, (len(positives) - 1) * len(negatives), len(positives) * (len(negatives) - 1))
    return np.concatenate([[total / pairs], (total - won) / np.maximum(left, 1)])


def rated(tags: Tags) -> list[int]:
    """Returns the tags that can be judged: some images are known to have them, and some not to."""
    return np.flatnonzero((tags == 1).any(0) & (tags == 0).any(0)).tolist()


def over_tags(area: Area, scores: Floats, tags: Tags) -> float:
    """Returns an area's mean over the tags that can be judged; NaN where there are none, or a score is not finite."""
    if not np.isfinite(scores).all():
        return math.nan
    return float(np.mean([_of_tag(area, scores[:, t], tags[:, t])[0] for t in rated(tags)] or [np.nan]))


def number(area: Area, scores: Floats, tags: Tags, groups: Ints | None = None) -> Number:
    """Returns the mean of an area over the tags that can be judged, with an interval that counts images, or groups.

    The interval is the jackknife's. It counts one image more, or one group of images more, which has each tag and
    scores lowest, or highest where the area is below one half: then neither an order without any mistake looks certain,
    nor one without anything right. In simulations it held the true value in 92 to 100 of 100 cases.
    """
    judged = rated(tags)
    areas = [float(_of_tag(area, scores[:, t], tags[:, t])[0]) for t in judged]
    if not areas or not np.isfinite(scores).all():
        return Number(math.nan)
    value, more = float(np.mean(areas)), 1
    if groups is not None:
        if len(np.unique(groups)) < 2:
            return Number(value, 0.0, 1.0)
        groups = with_groups(np.zeros(len(tags)), groups, 0.0)[1]
        more = len(groups) - len(tags)
    moved = np.zeros((len(judged), len(tags) + more))  # how far each image moves the mean, times the number of images
    kinds = [np.append(tags[:, t], np.ones(more, np.int8)) for t in judged]
    for row, t, one, has in zip(moved, judged, areas, kinds, strict=True):
        end = scores[:, t].min() - 1 if one >= 0.5 else scores[:, t].max() + 1
        whole, known = _of_tag(area, np.append(scores[:, t], np.full(more, end)), has), np.flatnonzero(has >= 0)
        row[known] = (len(known) - 1) * (whole[0] - whole[1:]) * len(row) / len(known) / len(judged)
    independent = by_group(moved.sum(0), groups)
    quantile = Z_95 if groups is None else student_95(_freedom(moved, kinds, groups))
    half = quantile * float(independent.std(ddof=1)) / math.sqrt(len(independent))
    return Number(value, max(0.0, value - half), min(1.0, value + half))


def _freedom(moved: Floats, kinds: Sequence[Tags], groups: Ints) -> float:
    """Returns the degrees of freedom: of a tag those of the groups that have it, or have it not, where these are fewer.

    Those of several tags are added as Satterthwaite does.
    """
    of_tags = np.array([min(effective(groups[has == 1]), effective(groups[has == 0])) - 1 for has in kinds]).clip(0.5)
    spread = np.array([by_group(row, groups).var(ddof=1) for row in moved])
    total = float((spread**2 / of_tags).sum())
    return float(spread.sum() ** 2 / total) if total else float(of_tags.min())


def _of_tag(area: Area, scores: Floats, tags: NDArray[np.int8]) -> Floats:
    known = tags >= 0
    return area(scores[known], tags[known] == 1)


def means(scores: Floats, tags: Tags) -> dict[str, float]:
    """Returns both areas as means over tags, without intervals."""
    return {"mean_ap": over_tags(average_precision, scores, tags), "mean_auroc": over_tags(auroc, scores, tags)}


def result(
    scores: Floats, tags: Tags, names: Sequence[str], groups: Ints | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns both areas as means over tags, for the metrics; and for a file, these with intervals, and tag by tag."""
    if not rated(tags):
        raise ConfigError("no tag is known of some test images and known not to be of others, so none can be judged")
    numbers: dict[str, Number] = {}
    every: list[dict[str, Any]] = [{"name": name} for name in names]
    for t, one in enumerate(every):
        one |= {"images": int((tags[:, t] >= 0).sum()), "having": int((tags[:, t] == 1).sum())}
    for key, area in (("ap", average_precision), ("auroc", auroc)):
        mean = partial(_of_rows, area, scores, tags)
        draws = pseudo_values(len(tags), mean, groups=groups)
        draws = () if np.isnan(draws).any() else draws  # without a part, a tag that few images have could not be judged
        numbers[f"mean_{key}"] = number(area, scores, tags, groups)._replace(draws=draws)
        for t in rated(tags):
            every[t][key] = number(area, scores[:, [t]], tags[:, [t]], groups).plain()
    values, details = told(numbers)
    for key, measure in details[MEASURES].items():
        measure["title"] = TITLES[key]
    return values, details | {"tags": every, "num_test": len(tags)}


def _of_rows(area: Area, scores: Floats, tags: Tags, rows: Ints) -> float:
    """Returns the mean over the tags that can be judged on all images; NaN where some rows do not suffice for one."""
    same = rated(tags) == rated(tags[rows])
    return over_tags(area, scores[rows], tags[rows]) if same else math.nan
