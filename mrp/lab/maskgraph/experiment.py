"""How masks connect images: the mask graph's edges, label error and eigenvalues, by mask ratio and mask unit.

The argument of Zhang, Wang and Wang (2022) for large mask ratios is about this graph: a larger ratio should add edges
within a class, too large a ratio edges between classes. Here that is measured, on images or on a toy world that is so
small that all its images can be listed, where the exact values stand beside the estimates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.order import keys
from mrp.lab.estimate import Estimate
from mrp.lab.images import labelled
from mrp.lab.maskgraph import graph, toy_world
from mrp.lab.maskgraph.graph import Distances
from mrp.models.masking import fold, random_mask
from mrp.step import Prepare

TOY = "toy"
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
TOY_DEFAULTS = {"images": 500, "masks": 60, "features": 2}
WORLDS = 60  # whose exact graphs are looked at beside the toy
TOY_NOISE = 0.02  # a twenty-fifth of the difference between two values of a patch: as good as none
BEST = {"label_error": min, "same_class_views": max, "residual": min}  # the criteria


@dataclass(frozen=True, slots=True)
class Options:
    """The data, the masks, and the size of the sample."""

    data: str  # what `data.train` takes, or "toy"
    ratios: tuple[float, ...] = RATIOS
    units: tuple[int, ...] = (4,)  # sides, in pixels, of the squares that are hidden as one
    images: int = 2000
    masks: int = 4  # per ratio, with one hidden unit each as the target; every mask and target if there are fewer
    features: int = 64  # k in Theorem 4.2
    noise: float | None = None  # in pixels of 0..1; None: chosen by `candidates`
    candidates: float = 8.0  # as how many of the images a whole image could be seen through the noise
    size: int = 32  # images are resized to it
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One ratio and unit."""

    unit: int
    ratio: float  # of whole units
    hidden: int  # units
    masks: int
    estimates: dict[str, Estimate]
    eigenvalues: list[float]  # the largest ones, in the sample
    exact: dict[str, float] | None  # where they are known
    exact_eigenvalues: list[float] | None


@dataclass(frozen=True, slots=True)
class Result:
    """The whole experiment."""

    options: Options
    noise: float
    chance: float  # that two images are of one class
    rows: list[Row]
    seconds: float
    worlds: dict[str, int] | None  # in how many of so many toy worlds each measure is monotone in the ratio

    @property
    def units(self) -> tuple[int, ...]:
        """The units that were measured, in the order of the options."""
        return tuple(dict.fromkeys(row.unit for row in self.rows))

    def of_unit(self, unit: int) -> list[Row]:
        """Returns the rows of one unit."""
        return [row for row in self.rows if row.unit == unit]

    def within(self) -> tuple[int, int]:
        """Returns how many exact values lie within the error of their estimate, and how many exact values are known."""
        pairs = [(row.estimates[name], value) for row in self.rows for name, value in (row.exact or {}).items()]
        return sum(estimate.low <= value <= estimate.high for estimate, value in pairs), len(pairs)

    def choices(self, unit: int) -> dict[str, list[float]]:
        """Returns for each criterion the best ratio, then those whose intervals overlap with that of the best."""
        rows = self.of_unit(unit)
        choices = {}
        for name, better in BEST.items():
            best = better(rows, key=lambda row: row.estimates[name].value)
            top = best.estimates[name]
            near = [r for r in rows if r.estimates[name].low <= top.high and r.estimates[name].high >= top.low]
            choices[name] = [best.ratio, *(row.ratio for row in near if row is not best)]
        return choices

    def as_data(self) -> dict[str, Any]:
        """Returns plain values, with what each criterion would choose."""
        choices = {str(unit): self.choices(unit) for unit in self.units}
        return {**asdict(self), "measures": graph.MEASURES, "choices": choices}


@dataclass(frozen=True, slots=True)
class Sample:
    """The images that the graph is estimated on."""

    images: Tensor  # N C H W, with zero mean
    labels: Tensor  # N
    world: toy_world.World | None  # that they are drawn from, if it is known

    @classmethod
    def draw(cls, options: Options) -> Sample:
        """Draws from the toy world, or reads images with values in 0..1."""
        if options.data == TOY:
            world = toy_world.make(seed=options.seed)
            images, labels = world.sample(options.images, options.seed)
            images = images.unflatten(1, (1, *toy_world.GRID))
        else:
            world = None
            images, labels = labelled(options.data, options.size, options.images)
            images = Prepare((0.0,), (1.0,))(images)
        return cls(images - images.mean(0), labels, world)

    @property
    def chance(self) -> float:
        """The probability that two images are of one class."""
        shares = self.world.joint.sum(1) if self.world else self.labels.bincount().double() / len(self.labels)
        return float(shares.square().sum())

    def noise(self, options: Options) -> float:
        """Returns the noise of the options, or the one that leaves as many candidates as the options ask for."""
        if options.noise is not None:
            return options.noise
        if self.world:
            return TOY_NOISE
        flat = self.images.flatten(1)
        draws = torch.randn(flat.shape, generator=torch.Generator().manual_seed(options.seed))
        return graph.calibrate(graph.distances(flat, draws), options.candidates)

    def grid(self, unit: int) -> tuple[int, int]:
        """Returns the rows and columns of mask units."""
        return self.images.shape[2] // unit, self.images.shape[3] // unit


def run(options: Options) -> Result:
    """Measures every ratio and unit."""
    began = time.monotonic()
    sample = Sample.draw(options)
    _check(options, sample)
    noise = sample.noise(options)
    num, classes = len(sample.images), int(sample.labels.max()) + 1
    print(f"{num:,} images of {classes} classes, seen through noise of {noise:.4g} (pixels in 0..1)")
    rows = []
    for unit in (1,) if sample.world else options.units:
        for hidden in _counts(math.prod(sample.grid(unit)), options.ratios):
            row = _measure(sample, unit, hidden, noise, options)
            rows.append(row)
            numbers = (f"{name} {row.estimates[name]}" for name in BEST)
            print(f"unit {unit}, ratio {row.ratio:.3f}: {', '.join(numbers)}")
    worlds = {"of": WORLDS, **toy_world.monotone(WORLDS, options.features)} if sample.world else None
    return Result(options, noise, sample.chance, rows, time.monotonic() - began, worlds)


def _check(options: Options, sample: Sample) -> None:
    num, side = len(sample.images), sample.images.shape[2]
    _require(options.noise is None or options.noise > 0, f"--noise: {options.noise} was given; allowed: above 0")
    _require(options.candidates > 1, f"--candidates: {options.candidates} was given; allowed: above 1")
    _require(num >= 40, f"--images: {num} are too few to compare halves of them; give at least 40")
    allowed = f"of {num} images; allowed: 1 to {num // 2 - 1}"
    _require(0 < options.features < num // 2, f"--features: {options.features} {allowed}")
    for ratio in options.ratios:
        _require(0 < ratio < 1, f"--ratios: {ratio} was given; allowed: above 0, below 1")
    for unit in () if sample.world else options.units:
        cuts = side % unit == 0 and unit < side
        _require(cuts, f"--unit: {unit} does not cut {side} pixels into several; change it or --size")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _counts(units: int, ratios: Sequence[float]) -> list[int]:
    """Returns how many units each ratio hides, as MAE counts them, each count once."""
    return sorted({min(max(units - int(units * (1 - ratio)), 1), units - 1) for ratio in ratios})


def _measure(sample: Sample, unit: int, hidden: int, noise: float, options: Options) -> Row:
    """Returns the means over masks, and the errors that halves of the images show."""
    units = math.prod(sample.grid(unit))
    masks = list(_masks(units, hidden, options))
    whole, halves = [], []
    for number, (mask, place) in enumerate(masks):
        generator = torch.Generator().manual_seed(int(fold(torch.tensor(options.seed), unit, hidden, number)))
        visible, target = _views(sample, mask, place, unit, generator)
        first, second = torch.randperm(len(sample.images), generator=generator).chunk(2)
        everything, *parts = (
            graph.measure(
                visible.among(part).log_posterior(noise),
                target.among(part).log_posterior(noise),
                sample.labels[part],
                options.features,
            )
            for part in (torch.arange(len(sample.images)), first, second)
        )
        whole.append(everything)
        halves.append([values for values, _ in parts])
    every = len(masks) == hidden * math.comb(units, hidden)
    estimates = {
        name: graph.estimate(
            torch.tensor([values[name] for values, _ in whole]),
            torch.tensor([[values[name] for values in pair] for pair in halves]),
            every,
        )
        for name in graph.MEASURES
    }
    exact = [toy_world.exact(sample.world, *pair, options.features) for pair in masks] if sample.world else []
    values, eigenvalues = _means(exact) if exact else (None, None)
    return Row(unit, hidden / units, hidden, len(masks), estimates, _means(whole)[1], values, eigenvalues)


def _means(measured: Sequence[graph.Measured]) -> tuple[dict[str, float], list[float]]:
    """Returns the means over masks of the measures and of the eigenvalues."""
    values = {name: sum(each[name] for each, _ in measured) / len(measured) for name in graph.MEASURES}
    return values, torch.stack([eigenvalues for _, eigenvalues in measured]).mean(0).tolist()


def _masks(units: int, hidden: int, options: Options) -> Iterator[tuple[Tensor, int]]:
    """Yields masks, each with a hidden unit as the target: all, or as many as asked for, drawn as MAE does."""
    if hidden * math.comb(units, hidden) <= options.masks:
        yield from toy_world.pairs(units, hidden)
        return
    generator = torch.Generator().manual_seed(int(fold(torch.tensor(options.seed), units, hidden)))
    for mask in random_mask(torch.from_numpy(keys(options.seed, 0, np.arange(options.masks))), units, hidden):
        places = mask.nonzero()[:, 0]
        yield mask, int(places[torch.randint(len(places), (), generator=generator)])


def _views(
    sample: Sample, mask: Tensor, place: int, unit: int, generator: torch.Generator
) -> tuple[Distances, Distances]:
    """Returns the distances of the visible views, and those of the targets: one hidden unit."""
    target = torch.zeros_like(mask).index_fill_(0, torch.tensor(place), True)
    flat = sample.images.flatten(2)  # N C HW
    draws = torch.randn(flat.shape, generator=generator)
    parts = []
    for units in (~mask, target):
        pixels = units.view(sample.grid(unit)).repeat_interleave(unit, 0).repeat_interleave(unit, 1).flatten()  # HW
        parts.append(graph.distances(flat[..., pixels].flatten(1), draws[..., pixels].flatten(1)))
    return parts[0], parts[1]
