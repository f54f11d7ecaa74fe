"""Reports loss spikes when they happen, since they are hard to find at the end of a run."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

_WINDOW = 100  # log points that the loss is compared with
_ENOUGH = 10  # without so many before it, nothing is unusual
_FAR = 8.0  # deviations above the median; a normal variable is that far from it once in 10^15 times
_FLOOR = 0.02  # the least deviation, as a share of the median: on a flat curve every ripple would be a spike


class Spikes:
    """Compares each logged loss with the median of those before it, in units of their median deviation."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """`lines` are those of a resumed run, from the last one back; no more are taken than are needed."""
        losses = (float(line.get("loss", math.nan)) for line in lines)
        self._before = deque(reversed([*islice(filter(math.isfinite, losses), _WINDOW)]), _WINDOW)

    def check(self, step: int, values: Mapping[str, float], say: Callable[[str], object]) -> dict[str, float]:
        """Returns one more number for the metrics where the loss is a spike, and warns of it."""
        loss = values.get("loss", math.nan)
        above = self._deviations(loss)
        if above is None or above <= _FAR:
            return {}
        say(f"warning: the loss of step {step} is a spike: {loss:.4g}, {above:.0f} deviations above the usual")
        return {"spike": above}

    def _deviations(self, loss: float) -> float | None:
        if not math.isfinite(loss):
            return None
        above = self._above(loss)
        self._before.append(loss)
        return above

    def _above(self, loss: float) -> float | None:
        if len(self._before) < _ENOUGH:
            return None
        median = statistics.median(self._before)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in self._before)  # a normal's sigma
        return (loss - median) / max(deviation, _FLOOR * abs(median), 1e-12)
