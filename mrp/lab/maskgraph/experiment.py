"""How masks connect images: the mask graph's edges, label error and eigenvalues, by mask ratio and mask unit.

The argument of Zhang, Wang and Wang (2022) for large mask ratios is about this graph: a larger ratio should add edges
within a class, too large a ratio edges between classes. Here that is measured, on images or on a toy world that is so
small that all its images can be listed, where the exact values stand beside the estimates.
"""

from __future__ import annotations

import itertools
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
TOY_NOISE = 0.02  # a twenty-fifth of the difference between two values of a patch: as good as none
BEST = {"label_error": min, "same_class": max, "same_class_views": max, "residual": min}  # the criteria


@dataclass(frozen=True, slots=True)
class Options:
    """The data, the masks, and the size of the sample."""

    data: str  # what `data.train` takes, or "toy"
    ratios: tuple[float, ...] = RATIOS
    units: tuple[int, ...] = (4,)  # sides, in pixels, of the squares that are hidden as one
    images: int = 2000
    masks: int = 4  # per ratio; every mask if there are fewer
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

    @property
    def units(self) -> tuple[int, ...]:
        """The units that were measured, in the order of the options."""
        return tuple(dict.fromkeys(row.unit for row in self.rows))

    def of_unit(self, unit: int) -> list[Row]:
        """Returns the rows of one unit."""
        return [row for row in self.rows if row.unit == unit]

    def within(self) -> tuple[int, int]:
        """Returns how many exact values lie within the stated error of their estimate, and how many are known."""
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


def run(options: Options) -> Result:
    """Measures every ratio and unit."""
    began = time.monotonic()
    world = toy_world.make(seed=options.seed) if options.data == TOY else None
    images, labels = _sample(options, world)
    _check(options, images)
    noise = options.noise
    if noise is None:
        noise = TOY_NOISE if world else _calibrated(images, options)
    print(f"{len(images):,} images of {labels.max() + 1} classes, seen through noise of {noise:.4g} (pixels in 0..1)")
    rows = []
    for unit in (1,) if world else options.units:
        for hidden in _counts(images, unit, options.ratios):
            row = _measure(images, labels, unit, hidden, noise, options, world)
            rows.append(row)
            numbers = (f"{name} {row.estimates[name]}" for name in BEST)
            print(f"unit {unit}, ratio {row.ratio:.3f}: {', '.join(numbers)}")
    shares = world.joint.sum(1) if world else labels.bincount().double() / len(labels)
    return Result(options, noise, float(shares.square().sum()), rows, time.monotonic() - began)


def _sample(options: Options, world: toy_world.World | None) -> tuple[Tensor, Tensor]:
    """Returns images (N C H W) with zero mean, and their labels."""
    if world is None:
        images, labels = labelled(options.data, options.size, options.images)
        images = Prepare((0.0,), (1.0,))(images)  # to 0..1
    else:
        images, labels = world.sample(options.images, options.seed)
        images = images.unflatten(1, (1, *toy_world.GRID))
    return images - images.mean(0), labels


def _check(options: Options, images: Tensor) -> None:
    if options.noise is not None and not options.noise > 0:
        raise ConfigError(f"--noise: {options.noise} was given; allowed: above 0")
    if not options.candidates > 1:
        raise ConfigError(f"--candidates: {options.candidates} was given; allowed: above 1")
    if len(images) < 40:
        raise ConfigError(f"--images: {len(images)} are too few to compare halves of them; give at least 40")
    if not 0 < options.features < len(images) // 2:
        raise ConfigError(
            f"--features: {options.features} of {len(images)} images; allowed: 1 to {len(images) // 2 - 1}"
        )
    if any(not 0 < ratio < 1 for ratio in options.ratios):
        raise ConfigError(
            f"--ratios: {min(options.ratios)} to {max(options.ratios)} were given; allowed: above 0, below 1"
        )
    for unit in options.units:
        if options.data != TOY and (images.shape[2] % unit or unit == images.shape[2]):
            raise ConfigError(f"--unit: {unit} does not cut {images.shape[2]} pixels into several; change it or --size")


def _calibrated(images: Tensor, options: Options) -> float:
    """Returns the noise that leaves as many candidates as the options ask for."""
    flat = images.flatten(1)
    draws = torch.randn(flat.shape, generator=torch.Generator().manual_seed(options.seed))
    return graph.calibrate(graph.distances(flat, draws), options.candidates)


def _counts(images: Tensor, unit: int, ratios: Sequence[float]) -> list[int]:
    """Returns how many units each ratio hides, as MAE counts them, each count once."""
    units = images.shape[2] // unit * (images.shape[3] // unit)
    return sorted({min(max(units - int(units * (1 - ratio)), 1), units - 1) for ratio in ratios})


def _measure(
    images: Tensor,
    labels: Tensor,
    unit: int,
    hidden: int,
    noise: float,
    options: Options,
    world: toy_world.World | None,
) -> Row:
    """Returns the means over masks, with the errors that halves of the images show."""
    grid = (images.shape[2] // unit, images.shape[3] // unit)
    units = grid[0] * grid[1]
    masks = list(_masks(units, hidden, options))
    whole, halves = [], []
    for number, mask in enumerate(masks):
        generator = torch.Generator().manual_seed(int(fold(torch.tensor(options.seed), unit, hidden, number)))
        views = _views(images, mask.view(grid), unit, generator)
        everything, *two_halves = torch.arange(len(images)), *torch.randperm(len(images), generator=generator).chunk(2)
        whole.append(_of_part(views, labels, everything, noise, options.features))
        halves.append([_of_part(views, labels, half, noise, options.features)[0] for half in two_halves])
    every = len(masks) == math.comb(units, hidden)
    estimates = {
        name: graph.estimate(
            torch.tensor([values[name] for values, _ in whole]),
            torch.tensor([[values[name] for values in pair] for pair in halves]),
            every,
        )
        for name in graph.MEASURES
    }
    exact = [toy_world.exact(world, mask, options.features) for mask in masks] if world else []
    exact_means = {name: sum(values[name] for values, _ in exact) / len(exact) for name in graph.MEASURES if exact}
    return Row(
        unit=unit,
        ratio=hidden / units,
        hidden=hidden,
        masks=len(masks),
        estimates=estimates,
        eigenvalues=_mean_spectrum(whole),
        exact=exact_means or None,
        exact_eigenvalues=_mean_spectrum(exact) if exact else None,
    )


def _mean_spectrum(measured: Sequence[tuple[dict[str, float], Tensor]]) -> list[float]:
    mean: list[float] = torch.stack([eigenvalues for _, eigenvalues in measured]).mean(0).tolist()
    return mean


def _masks(units: int, hidden: int, options: Options) -> Iterator[Tensor]:
    """Yields every mask, or as many as the options ask for, drawn as MAE draws them."""
    if math.comb(units, hidden) <= options.masks:
        for chosen in itertools.combinations(range(units), hidden):
            yield torch.zeros(units, dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)
        return
    yield from random_mask(torch.from_numpy(keys(options.seed, 0, np.arange(options.masks))), units, hidden)


def _views(images: Tensor, mask: Tensor, unit: int, generator: torch.Generator) -> tuple[Distances, Distances]:
    """Returns the distances of visible views and of hidden ones: the smaller views are computed, the others follow."""
    pixels = mask.repeat_interleave(unit, 0).repeat_interleave(unit, 1).flatten()  # HW
    flat = images.flatten(2)  # N C HW
    draws = torch.randn(flat.shape, generator=generator)
    whole = graph.distances(flat.flatten(1), draws.flatten(1))
    hidden_is_smaller = bool(pixels.sum() * 2 <= len(pixels))
    smaller = pixels if hidden_is_smaller else ~pixels
    part = graph.distances(flat[..., smaller].flatten(1), draws[..., smaller].flatten(1))
    rest = whole.less(part)
    return (rest, part) if hidden_is_smaller else (part, rest)


def _of_part(
    views: tuple[Distances, Distances], labels: Tensor, part: Tensor, noise: float, features: int
) -> tuple[dict[str, float], Tensor]:
    """Returns the measures and eigenvalues on some of the images."""
    visible, hidden = (
        Distances(*(table[part][:, part] for table in distances)).log_posterior(noise) for distances in views
    )
    return graph.measure(visible, hidden, labels[part], features)
