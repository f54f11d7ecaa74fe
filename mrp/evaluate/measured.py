"""Numbers with intervals, in the two forms in which an evaluator gives them away: for the metrics, and for a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple


class Mean(NamedTuple):
    """A number and, where they are known, the bounds of its 95 % interval."""

    mean: float
    low: float | None = None
    high: float | None = None


def told(means: Mapping[str, Mean], lower: Collection[str] = ()) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the values of some numbers, and for a file the same with what tables need to know of them.

    Those in `lower` are better the lower they are, and are no shares.
    """
    values = {name: number.mean for name, number in means.items()}
    measures = {
        name: {"value": number.mean, "low": number.low, "high": number.high}
        | ({"share": False, "better": "lower"} if name in lower else {})
        for name, number in means.items()
    }
    return values, {**values, "measures": measures}
