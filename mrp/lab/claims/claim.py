"""A claim of a paper, what an experiment should measure if it is true, and the verdict on what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from mrp.config import Node
from mrp.lab.claims.number import Number, Numbers, plain


class Verdict(StrEnum):
    """What can be said of a claim."""

    HOLDS = "holds"
    HERE_ONLY = "holds here only"
    FAILS = "does not hold"
    MORE = "needs more compute"
    NOT_RUN = "not run"
    NEVER = "cannot be evaluated"


class Prediction(NamedTuple):
    """An inequality about one number."""

    number: str  # its name
    comparison: Literal[">", "<"]
    limit: float

    def __str__(self) -> str:
        return f"{self.number} {self.comparison} {plain(self.limit)}"

    def holds_for(self, number: Number) -> bool | None:
        """Returns whether the whole interval lies on the predicted side, or None if it lies on both sides."""
        sign = 1 if self.comparison == ">" else -1
        middle, half = sign * (number.value - self.limit), number.half or 0.0
        return True if middle - half > 0 else False if middle + half <= 0 else None


class Claim(Node):
    """One claim of `claims.yaml`; the head of that file explains the fields."""

    id: str
    claim: str
    source: str
    commands: tuple[str, ...] = ()
    cost: str = ""
    measures: tuple[dict[str, Any], ...] = ()
    predictions: tuple[Prediction, ...] = ()
    elsewhere: tuple[Prediction, ...] = ()
    seeds: int = 3
    recipes: tuple[str, ...] = ()
    never: str = ""
    note: str = ""

    def verdict(self, numbers: Numbers) -> tuple[Verdict, str]:
        """Returns the verdict, and the reason where the numbers alone do not show it."""
        if self.never:
            return Verdict.NEVER, self.never
        results = {each: each.holds_for(numbers[each.number]) for each in self.predictions if each.number in numbers}
        if wrong := [prediction for prediction, holds in results.items() if holds is False]:
            return Verdict.FAILS, _measured(wrong, numbers)
        if len(results) < len(self.predictions):
            return (Verdict.MORE if self.recipes else Verdict.NOT_RUN), self.cost
        if undecided := [prediction for prediction, holds in results.items() if holds is None]:
            return Verdict.MORE, f"the interval allows both: {_measured(undecided, numbers)}"
        others = [prediction for prediction in self.elsewhere if prediction.number in numbers]
        if unmet := [prediction for prediction in others if not prediction.holds_for(numbers[prediction.number])]:
            return Verdict.HERE_ONLY, f"elsewhere: {_measured(unmet, numbers)}"
        seeds = min(numbers[prediction.number].seeds for prediction in self.predictions)
        if seeds < self.seeds:
            return Verdict.HERE_ONLY, f"{seeds} of {self.seeds} seeds"
        return Verdict.HOLDS, ""


def _measured(predictions: Sequence[Prediction], numbers: Numbers) -> str:
    names = dict.fromkeys(prediction.number for prediction in predictions)
    return "; ".join(f"{name} is {numbers[name]}" for name in names)
