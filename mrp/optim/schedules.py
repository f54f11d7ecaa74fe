"""Schedules: how a value changes during training."""

from __future__ import annotations

import math
from collections.abc import Sequence


def half_cosine(at: float, total: float, warmup: float, peak: float, floor: float = 0.0) -> float:
    """Returns a linear warm-up from zero, then half a cosine from the peak to the floor; in steps or in epochs."""
    if at < warmup:
        return peak * at / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (at - warmup) / (total - warmup)))


def stepwise(at: float, warmup: float, peak: float, drops: Sequence[float], factor: float = 0.1) -> float:
    """Returns a linear warm-up from zero, then the peak, multiplied by the factor at each drop."""
    if at < warmup:
        return peak * at / warmup
    return peak * factor ** sum(at >= drop for drop in drops)
