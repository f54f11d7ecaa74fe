"""What a paper claims, what follows for an experiment, and what the experiment's numbers say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import torch

from mrp.lab.claims.results import Results
from mrp.lab.multiview.measure import Spread


class Verdict(StrEnum):
    """What can be said of a claim."""

    HOLDS = "holds"
    HERE_ONLY = "holds here only"
    FAILS = "does not hold"
    MORE = "needs more compute"
    NOT_RUN = "not run"
    NEVER = "cannot be evaluated"


class Number(NamedTuple):
    """A measured value."""

    value: float
    half: float | None  # of its 95 % interval; None where there is none
    over: str  # what it and the interval are over: "5 seeds"
    seeds: int = 1

    def __str__(self) -> str:
        spread = "" if self.half is None else f" +- {_plain(self.half)}" if self.half else ""
        return f"{_plain(self.value)}{spread}"


class Bound(NamedTuple):
    """A prediction: an inequality about one number, by that number's name."""

    number: str
    sense: Literal[">", "<"]
    limit: float

    def __str__(self) -> str:
        return f"{self.number} {self.sense} {_plain(self.limit)}"

    def met_by(self, number: Number) -> bool | None:
        """Whether the whole interval is on the predicted side; None: on both."""
        sign = 1 if self.sense == ">" else -1
        middle, half = sign * (number.value - self.limit), number.half or 0.0
        return True if middle - half > 0 else False if middle + half <= 0 else None


Numbers = dict[str, Number]
Measure = Callable[[Results], Numbers]


@dataclass(frozen=True, slots=True)
class Claim:
    """One row: what is said, what it comes to in an experiment, and how to measure that."""

    key: str
    statement: str
    source: str
    command: str
    cost: str  # processor time of the command, or what a GPU would take
    bounds: tuple[Bound, ...]
    measure: Measure
    elsewhere: tuple[Bound, ...] = ()  # the same away from the experiment's defaults
    enough: int = 3  # seeds, for a verdict that is not of this place only
    recipes: tuple[str, ...] = ()  # to be trained first, at the cost in their heads
    never: str = ""  # why it cannot be evaluated
    note: str = ""

    def judge(self, numbers: Numbers) -> tuple[Verdict, str]:
        """The verdict, and what it rests on where that is not plain."""
        if self.never:
            return Verdict.NEVER, self.never
        met = {bound: bound.met_by(numbers[bound.number]) for bound in self.bounds if bound.number in numbers}
        missed = [bound for bound, verdict in met.items() if verdict is False]
        if missed:
            return Verdict.FAILS, _what(missed, numbers)
        if len(met) < len(self.bounds):
            return (Verdict.MORE if self.recipes else Verdict.NOT_RUN), self.cost
        undecided = [bound for bound, verdict in met.items() if verdict is None]
        if undecided:
            return Verdict.MORE, f"the interval allows both: {_what(undecided, numbers)}"
        limits = [bound for bound in self.elsewhere if bound.number in numbers]
        lost = [bound for bound in limits if not bound.met_by(numbers[bound.number])]
        if lost:
            return Verdict.HERE_ONLY, f"elsewhere: {_what(lost, numbers)}"
        seeds = min(numbers[bound.number].seeds for bound in self.bounds)
        if seeds < self.enough:
            return Verdict.HERE_ONLY, f"{seeds} of {self.enough} seeds"
        return Verdict.HOLDS, ""


def over_seeds(values: Sequence[float], where: str) -> Number:
    """The mean over seeds, with Student's interval from three of them on: that of two says nothing."""
    seeds = len(values)
    mean = sum(values) / seeds
    if seeds == 1:
        return Number(mean, None, f"1 seed, {where}")
    if seeds == 2:
        return Number(mean, None, f"2 seeds, {where}, {_plain(min(values))} and {_plain(max(values))}", seeds)
    spread = Spread.of(torch.tensor(values))
    return Number(spread.mean, spread.half, f"{seeds} seeds, {where}", seeds)


def over_images(values: Sequence[float], halves: Sequence[float], where: str) -> Number:
    """The mean of few seeds, with the interval over the images that each was measured on."""
    seeds = len(values)
    half = math.hypot(*halves) / seeds
    return Number(sum(values) / seeds, half, f"{seeds} seed{'s' if seeds > 1 else ''}, {where}", seeds)


def difference(first: Number, second: Number, over: str) -> Number:
    """Of two numbers whose errors are taken for independent, which is cautious where they share their images."""
    half = math.hypot(first.half or 0.0, second.half or 0.0)
    return Number(first.value - second.value, half, over, min(first.seeds, second.seeds))


def _what(bounds: Sequence[Bound], numbers: Numbers) -> str:
    return "; ".join(f"{bound.number} is {numbers[bound.number]}" for bound in bounds)


def _plain(value: float) -> str:
    """Three digits after the point, or three digits that count."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
