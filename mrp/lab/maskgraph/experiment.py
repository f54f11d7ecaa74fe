"""How masks connect images: the mask graph's edges, label error and eigenvalues, by mask ratio and mask unit.

The papers' argument for large ratios is about this graph (Zhang, Wang and Wang, 2022): a larger ratio should add edges
within a class, too large a one edges between classes. Here that is measured, on images or on a world small enough to be
written down, where the exact values stand beside the estimated ones.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.order import keys
from mrp.lab.maskgraph import graph, toy_world
from mrp.lab.maskgraph.graph import Distances, Estimate
from mrp.lab.samples import labelled
from mrp.models.masking import fold, random_mask
from mrp.step import Prepare

TOY = "toy"
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
_TOY_NOISE = 0.02  # a twenty-fifth of the step between two values of a patch: as good as none
_BEST = {"label_error": min, "same_class": max, "same_class_views": max, "residual": min}


@dataclass(frozen=True, slots=True)
class Options:
    """What to look at, and how closely."""

    data: str  # what `data.train` takes, or "toy"
    ratios: tuple[float, ...] = RATIOS
    units: tuple[int, ...] = (4,)  # sides, in pixels, of the squares that are hidden as one
    images: int = 2000
    masks: int = 4  # of each ratio; all there are if these are fewer
    features: int = 64  # k in Theorem 4.2
    noise: float | None = None  # in pixels of 0..1; None: by `candidates`
    candidates: float = 8.0  # how many of the images a whole image seen through the noise could be
    size: int = 32  # images are resized to it
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One ratio and unit."""

    unit: int
    ratio: float  # as it came out
    hidden: int  # units
    masks: int
    estimates: dict[str, Estimate]
    eigenvalues: list[float]  # the largest, as they are in the sample
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
    def units(self) -> list[int]:
        """Those that were looked at."""
        return list(dict.fromkeys(row.unit for row in self.rows))

    def of_unit(self, unit: int) -> list[Row]:
        """Its ratios."""
        return [row for row in self.rows if row.unit == unit]

    def within(self) -> tuple[int, int]:
        """How many estimates have the exact value inside their stated error, and how many there are to compare."""
        pairs = [(row.estimates[name], value) for row in self.rows for name, value in (row.exact or {}).items()]
        return sum(found.low <= value <= found.high for found, value in pairs), len(pairs)

    def choices(self, unit: int) -> dict[str, list[float]]:
        """For each criterion the ratio it would choose, and those whose intervals reach into the best one's."""
        rows = self.of_unit(unit)
        found = {}
        for name, better in _BEST.items():
            best = better(rows, key=lambda row: row.estimates[name].value)
            reach = best.estimates[name]
            near = [r for r in rows if r.estimates[name].low <= reach.high and r.estimates[name].high >= reach.low]
            found[name] = [best.ratio, *(row.ratio for row in near if row is not best)]
        return found


def run(options: Options, say: Any = print) -> Result:
    """Measure every ratio and unit."""
    began = time.monotonic()
    world = toy_world.make(seed=options.seed) if options.data == TOY else None
    images, labels = _sample(options, world)
    _check(options, images)
    noise = options.noise
    if noise is None:
        noise = _TOY_NOISE if world else _calibrated(images, options)
    say(
        f"{len(images):,} images of {int(labels.max()) + 1} classes, seen through noise of {noise:.4g} (pixels in 0..1)"
    )
    rows = []
    for unit in (1,) if world else options.units:
        for hidden in _counts(images, unit, options.ratios):
            rows.append(_row(images, labels, unit, hidden, noise, options, world))
            found = rows[-1].estimates
            numbers = (f"{name} {found[name].value:.3f} +- {found[name].error:.3f}" for name in _BEST)
            say(f"unit {unit}, ratio {rows[-1].ratio:.3f}: {', '.join(numbers)}")
    chance = float((labels.bincount().double() / len(labels)).square().sum())
    if world:
        chance = float(world.joint.sum(1).square().sum())
    return Result(options, noise, chance, rows, time.monotonic() - began)


def _sample(options: Options, world: toy_world.World | None) -> tuple[Tensor, Tensor]:
    """Images (N C H W) with zero mean, and their labels."""
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
    flat = images.flatten(1)
    draws = torch.randn(flat.shape, generator=torch.Generator().manual_seed(options.seed))
    return graph.calibrate(graph.distances(flat, draws), options.candidates)


def _counts(images: Tensor, unit: int, ratios: Sequence[float]) -> list[int]:
    """How many units each ratio hides, as MAE counts them; ratios that come out alike are one."""
    units = images.shape[2] // unit * (images.shape[3] // unit)
    return sorted({min(max(units - int(units * (1 - ratio)), 1), units - 1) for ratio in ratios})


def _row(
    images: Tensor,
    labels: Tensor,
    unit: int,
    hidden: int,
    noise: float,
    options: Options,
    world: toy_world.World | None,
) -> Row:
    """The mean over masks."""
    grid = (images.shape[2] // unit, images.shape[3] // unit)
    units = grid[0] * grid[1]
    masks = list(_masks(units, hidden, options))
    whole, halves, largest = [], [], []
    for number, mask in enumerate(masks):
        generator = torch.Generator().manual_seed(int(fold(torch.tensor(options.seed), unit, hidden, number)))
        visible, target = _views(images, mask.view(grid), unit, generator)
        everything = torch.arange(len(images))
        parts = (everything, *torch.randperm(len(images), generator=generator).chunk(2))
        found = [_part(visible, target, labels, part, noise, options.features) for part in parts]
        whole.append(found[0][0])
        halves.append([found[1][0], found[2][0]])
        largest.append(found[0][1])
    every = len(masks) == math.comb(units, hidden)
    estimates = {
        name: graph.estimate(
            torch.tensor([values[name] for values in whole]),
            torch.tensor([[values[name] for values in pair] for pair in halves]),
            every,
        )
        for name in graph.MEASURES
    }
    known = [toy_world.exact(world, mask, options.features) for mask in masks] if world else []
    return Row(
        unit=unit,
        ratio=hidden / units,
        hidden=hidden,
        masks=len(masks),
        estimates=estimates,
        eigenvalues=torch.stack(largest).mean(0).tolist(),
        exact={name: sum(values[name] for values, _ in known) / len(known) for name in graph.MEASURES}
        if known
        else None,
        exact_eigenvalues=torch.stack([values for _, values in known]).mean(0).tolist() if known else None,
    )


def _masks(units: int, hidden: int, options: Options) -> Iterator[Tensor]:
    """Every mask, or as many as asked for, drawn as MAE draws them."""
    if math.comb(units, hidden) <= options.masks:
        for chosen in itertools.combinations(range(units), hidden):
            yield torch.zeros(units, dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)
        return
    yield from random_mask(torch.from_numpy(keys(options.seed, 0, np.arange(options.masks))), units, hidden)


def _views(images: Tensor, mask: Tensor, unit: int, generator: torch.Generator) -> tuple[Distances, Distances]:
    """Distances of the visible views and of the hidden ones: the smaller kind is computed, the other is the rest."""
    pixels = mask.repeat_interleave(unit, 0).repeat_interleave(unit, 1).flatten()  # HW
    flat = images.flatten(2)  # N C HW
    draws = torch.randn(flat.shape, generator=generator)
    whole = graph.distances(flat.flatten(1), draws.flatten(1))
    fewer = pixels if pixels.sum() * 2 <= len(pixels) else ~pixels
    part = graph.distances(flat[..., fewer].flatten(1), draws[..., fewer].flatten(1))
    rest = whole.less(part)
    return (rest, part) if fewer is pixels else (part, rest)


def _part(
    visible: Distances, target: Distances, labels: Tensor, part: Tensor, noise: float, features: int
) -> tuple[dict[str, float], Tensor]:
    """The measures on some of the images."""
    posteriors = [
        Distances(*(table[part][:, part] for table in views)).log_posterior(noise) for views in (visible, target)
    ]
    return graph.measure(posteriors[0], posteriors[1], labels[part], features)
