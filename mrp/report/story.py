"""What numbers say, in words: the titles of charts, computed from what they show."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mrp.evaluate.interval import in_percent
from mrp.report.series import SMOOTHED, Floats, Series, said, smoothed

_LAST = 10  # the last tenth of a curve is compared with the tenth before it
_CHANGED = 0.01  # of the curve's whole range; a change below it is none
_TURNED = 0.25  # of the curve's whole range, that its turn lies beyond both of its ends
_FLAT = 0.05  # of the curve's whole range; a tenth is flat where no change above it is within the standard errors
_STANDARD_ERRORS = 3.0  # that a change has to exceed
_LOADER, _MOSTLY, _COMPUTE = "loader-bound", "mostly compute-bound", "compute-bound"
_COMPUTES, _STARVES = 0.05, 0.2  # shares of the time in which the loader is waited for


def course(what: str, series: Series) -> str:
    """Returns from where to where a curve went, and what it does at its end."""
    y = series.finite().y
    if not len(y):
        return f"{what}: no finite value yet"
    if len(y) == 1:
        return f"{what}: {said(float(y[0]))} at step {series.finite().x[0]:,.0f}, the only log point"
    smooth = smoothed(y) if len(y) > SMOOTHED else y
    first, last, least, most = float(y[0]), float(smooth[-1]), float(smooth.min()), float(smooth.max())
    room = _TURNED * (most - least)
    turns = least < min(first, last) - room, most > max(first, last) + room
    if all(turns):
        return f"{what} moved between {said(least)} and {said(most)}, with {said(last)} at the end"
    if any(turns):
        there, back = ("fell", "rose") if turns[0] else ("rose", "fell")
        extreme = int(smooth.argmin() if turns[0] else smooth.argmax())
        at = f"{said(float(smooth[extreme]))} at step {series.finite().x[extreme]:,.0f}"
        return f"{what} {there} from {said(first)} to {at}, then {back} to {said(last)}"
    if said(first) == said(last) or abs(last - first) < _CHANGED * max(abs(first), abs(last)):
        return f"{what} stayed at {said(last)}"
    moved = f"{what} {'fell' if last < first else 'rose'} from {said(first)} to {said(last)}"
    return f"{moved}; {end}" if (end := at_the_end(y)) else moved


def at_the_end(values: Floats) -> str:
    """Returns what the last tenth does beside the tenth before it; empty where too few or too noisy to say."""
    count = len(values) // _LAST
    if count < 3:
        return ""
    before, last = values[-2 * count : -count], values[-count:]
    change = float(last.mean() - before.mean())
    error = _STANDARD_ERRORS * math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / count)
    span = float(np.ptp(smoothed(values)))
    if abs(change) >= max(error, _CHANGED * span):
        return f"still {'falling' if change < 0 else 'rising'} at the end"
    return "flat at the end" if abs(change) + error < _FLAT * span else ""  # else it may be either


def between(what: str, series: Series, unit: str = "") -> str:
    """Returns the middle of a fluctuating number and where nine tenths of its values lie."""
    y = series.finite().y
    if not len(y):
        return f"{what}: no finite value yet"
    low, middle, high = (said(float(one)) for one in np.quantile(y, (0.05, 0.5, 0.95)))
    unit = f" {unit}" if unit else ""
    return f"{what}: {middle}{unit}" if low == high else f"{what}: {middle}{unit}, mostly {low} to {high}"


class Verdict(NamedTuple):
    """Who is waited for: the loader, or the device."""

    kind: str
    text: str

    @property
    def starves(self) -> bool:
        """Returns whether a faster loader is what the run needs most."""
        return self.kind == _LOADER


def verdict(waiting: Series | None, rate: Series | None) -> Verdict | None:
    """Returns whether the loader or the computation limits the speed; None where it was not recorded."""
    if waiting is None or not len(waiting.finite().y):
        return None
    y = waiting.finite().y
    share = float(np.median(y[1:] if len(y) > 1 else y))  # the first one holds the start of the workers
    waited = f"the steps waited for the loader in {100 * share:.0f} % of their time"
    if share < _COMPUTES:
        return Verdict(_COMPUTE, f"{_COMPUTE}: {waited}")
    now = (
        "" if rate is None or not len(rate.finite().y) else f", now {said(float(np.median(rate.finite().y)))} images/s"
    )
    gain = f"a loader that is never waited for would be {1 / max(1 - share, 1e-3):.2g} times as fast{now}"
    kind = _LOADER if share >= _STARVES else _MOSTLY
    return Verdict(kind, f"{kind}: {waited}; {gain}")


def accuracy(series: Series) -> str:
    """Returns the last accuracy with its interval, and where it came from."""
    last = f"{series.name} {in_percent(series.y[-1])} %"
    if series.low is not None and series.high is not None:
        last += f" ({in_percent(series.low[-1])} to {in_percent(series.high[-1])})"
    return last if len(series.y) == 1 else f"{last}, from {in_percent(series.y[0])} % at step {series.x[0]:,.0f}"


def listed(parts: list[str], last: str = "and") -> str:
    """Returns parts as a sentence lists them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
