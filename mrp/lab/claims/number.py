"""The numbers that verdicts rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from mrp.lab.estimate import Estimate


class Number(NamedTuple):
    """A measured value."""

    value: float
    half: float | None  # half the width of its 95 % interval; None where there is no interval
    over: str  # what the value is a mean over: "5 seeds"
    seeds: int = 1

    def __str__(self) -> str:
        return plain(self.value) + (f" +- {plain(self.half)}" if self.half else "")


Numbers = dict[str, Number]


def from_entry(entry: Mapping[str, float], over: str, seeds: int = 1) -> Number:
    """Reads an entry of a result file: a `value` and its `error`, or a `mean` and `half` of its interval."""
    value, half = ("mean", "half") if "mean" in entry else ("value", "error")
    return Number(entry[value], entry[half], over, seeds)


def over_seeds(values: Sequence[float], conditions: str) -> Number:
    """Returns the mean over seeds, with Student's interval if there are three or more: that of two says nothing."""
    seeds = len(values)
    if seeds >= 3:
        mean = Estimate.over_seeds(torch.tensor(values))
        return Number(mean.value, mean.error, f"{seeds} seeds, {conditions}", seeds)
    over = f"1 seed, {conditions}"
    if seeds == 2:
        over = f"2 seeds, {conditions}, {plain(min(values))} and {plain(max(values))}"
    return Number(sum(values) / seeds, None, over, seeds)


def over_images(values: Sequence[float], halves: Sequence[float], conditions: str) -> Number:
    """Returns the mean over few seeds, with the interval over the images, which are the same ones for each seed.

    So what is uncertain of one seed for these images is uncertain of the others, and does not shrink with their number.
    """
    seeds = len(values)
    over = f"{seeds} seed{'s' if seeds > 1 else ''}, {conditions}"
    return Number(sum(values) / seeds, sum(halves) / seeds, over, seeds)


def difference(first: Number, second: Number, over: str) -> Number:
    """Returns first minus second as if their errors were independent, which is cautious if they share images."""
    half = None if first.half is None or second.half is None else math.hypot(first.half, second.half)
    return Number(first.value - second.value, half, over, min(first.seeds, second.seeds))


def plain(value: float) -> str:
    """Returns three digits after the point, two for values of 10 and more, none for whole numbers."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
