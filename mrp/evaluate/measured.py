"""Numbers with intervals, in the two forms in which an evaluator gives them away: for the metrics, and for a file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from mrp.data.order import Ints
from mrp.evaluate import interval
from mrp.evaluate.measures import MEASURES


class Number(NamedTuple):
    """A number, the bounds of its 95 % interval where they are known, and what a table has to know of it."""

    value: float
    low: float | None = None
    high: float | None = None
    share: bool = True  # shown in percent
    better: str = "higher"  # or "lower", or "" where neither is
    draws: tuple[float, ...] = ()  # values of the same draws, or groups of images, for every model

    def plain(self) -> dict[str, Any]:
        """Returns it as it is kept in a file."""
        kept = self._asdict()
        return kept if self.draws else {key: value for key, value in kept.items() if key != "draws"}


def share_of(right: Tensor, groups: Ints | None = None) -> Number:
    """Returns the share of true values, of which each image, or each group of them, is independent of the others."""
    return Number(*interval.share_of(right.cpu(), groups))


def mean_of(values: Tensor, share: bool = True, better: str = "higher", groups: Ints | None = None) -> Number:
    """Returns the mean of one value per image, without NaN; the interval is that of the normal distribution."""
    values = values.cpu()
    known = ~values.isnan()
    values, groups = values[known].double(), None if groups is None else groups[known.numpy()]
    if not len(values):
        return Number(math.nan, None, None, share, better)
    mean, half = float(values.mean()), interval.half_width(values.numpy(), groups)
    if math.isinf(half):
        return Number(mean, None, None, share, better)
    low, high = mean - half, mean + half
    return Number(mean, *((max(0.0, low), min(1.0, high)) if share else (low, high)), share, better)


def told(
    numbers: Mapping[str, Number], shown: Collection[str] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:  # fmt: skip
    """Returns the values of some numbers, and for a file the same, with what tables have to know of those they show.

    Tables show all numbers unless some are named.
    """
    values = {name: number.value for name, number in numbers.items()}
    measures = {name: number.plain() for name, number in numbers.items() if shown is None or name in shown}
    return values, {**values, MEASURES: measures}
