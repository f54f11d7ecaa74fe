"""What charts draw: numbers over steps, with what happened at single steps, and how a number is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Kind = Literal["noisy", "exact", "measured"]  # drawn smoothed over its points, as it is, or with a marker per value

SERIES = 8  # that differ in colour, dashes and markers together
SMOOTHED = 30  # points; a curve of fewer is drawn as it is, with a marker for each
_BINS = 200


@dataclass(frozen=True)
class Series:
    """Values over steps, with the bounds of their 95 % intervals where these are known."""

    name: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None

    @classmethod
    def of(cls, name: str, x: ArrayLike, y: ArrayLike) -> Series:
        """Returns a series without intervals."""
        return cls(name, np.asarray(x, np.float64), np.asarray(y, np.float64))

    def scaled(self, by: float) -> Series:
        """Returns the series in another unit."""
        bounds = (None if one is None else by * one for one in (self.low, self.high))
        return Series(self.name, self.x, by * self.y, *bounds)

    def finite(self) -> Series:
        """Returns the series without values that are not finite."""
        kept = np.isfinite(self.x) & np.isfinite(self.y)
        bounds = (None if one is None else one[kept] for one in (self.low, self.high))
        return Series(self.name, self.x[kept], self.y[kept], *bounds)


@dataclass(frozen=True)
class Marks:
    """What happened at single steps."""

    resumes: Sequence[int] = ()
    incidents: Sequence[int] = ()
    spikes: Sequence[int] = ()
    evaluations: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """What is drawn, and the sentence that says what it shows."""

    title: str
    unit: str  # of the vertical axis
    series: Sequence[Series]
    marks: Marks = field(default_factory=Marks)
    kind: Kind = "noisy"
    note: str = ""
    horizontal: str = "step"
    zero: bool = False  # whether the vertical axis begins at zero


def smoothed(values: Floats) -> Floats:
    """Returns the mean over a centred window of about a twentieth of the curve, which is narrower at its ends."""
    reach = math.ceil(len(values) / 40)
    return _sums(values, reach) / _sums(np.ones_like(values), reach)


def _sums(values: Floats, reach: int) -> Floats:
    """Returns the sum over each value's window, in a time that does not grow with the window.

    The values stand in rows as long as a window, which so is the end of one row and the beginning of the next.
    """
    width = 2 * reach + 1
    rows = np.pad(values, (reach, width + -(len(values) + reach) % width)).reshape(-1, width)
    ends = rows[:, ::-1].cumsum(1)[:, ::-1]
    beginnings = np.pad(rows.cumsum(1), ((0, 0), (1, 0)))[:, :-1]
    sums: Floats = (ends[:-1] + beginnings[1:]).reshape(-1)[: len(values)]
    return sums


def binned(x: Floats, y: Floats, bins: int = _BINS) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns the mean place, the mean, the least and the largest value of each bin that holds any."""
    edges = np.linspace(x[0], x[-1], bins + 1)
    starts = np.unique(np.searchsorted(x, edges[:-1], side="left"))
    counts = np.diff([*starts, len(x)])
    places, means = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return places, means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def said(value: float, digits: int = 3) -> str:
    """Returns a number with few digits, as people write it."""
    if 100 <= abs(value) < 1e9:
        return f"{value:,.0f}" if digits < 5 or abs(value) >= 1e5 else f"{value:,.2f}"
    if digits < 5 and abs(value) < 100 <= abs(float(f"{value:.{digits}g}")):
        digits = 5  # 99.96 % are not 100 %
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
