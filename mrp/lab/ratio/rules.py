"""Two rules that name MAE's best mask ratio from what a masked classifier measures, before any MAE is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mrp.evaluate import statistics

RULES: dict[str, str] = {
    "balance": (
        "Hide as much as possible before the label error has risen as much. Theorem 4.1 adds the label error, which "
        "rises with the ratio, to a loss whose bound, the eigenvalue sum of Theorem 4.2, falls with it, under weights "
        "that are not given. So both run from 0 to 1 here: the merit is the hidden share minus "
        "(alpha(r) - alpha(0)) / (alpha(1) - alpha(0))."
    ),
    "lesson": (
        "Link as many views that show the class with views that do not. MAE makes the views that share a target alike "
        "(Theorem 3.4). That teaches the class only where one view of the pair tells it and the other does not: the "
        "merit is the share of such pairs."
    ),
}

FIXED = (0.5, 0.75)  # rules that look at nothing, which the others have to beat: the ratio that is nearest to this


def merits(
    ratios: Sequence[float], label_errors: Sequence[float], one_of_two: Sequence[float], whole: float, chance: float
) -> dict[str, list[float]]:
    """Returns every ratio's merit by each rule, from the label error of whole images and of none of an image.

    `one_of_two` is how often one of two views of an image is classified rightly, and the other is not.
    """
    rises = max(chance - whole, 1e-9)
    return {
        "balance": [ratio - (error - whole) / rises for ratio, error in zip(ratios, label_errors, strict=True)],
        "lesson": [*one_of_two],
    }


def best(ratios: Sequence[float], merit: Sequence[float]) -> float:
    """Returns the ratio with the highest merit."""
    return max(zip(merit, ratios, strict=True))[1]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns Spearman's correlation of two rankings; 0 where one of them ranks nothing."""
    found = statistics.rank_correlation(first, second)
    return 0.0 if math.isnan(found) else found
