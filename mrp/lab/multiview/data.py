"""Samples of the multi-view data model: a class has two features, and a single-view sample shows only one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrp.lab.multiview.constants import Constants, Range


@dataclass(frozen=True, slots=True)
class Samples:
    """One data set per seed."""

    patches: Tensor  # seeds N P d
    labels: Tensor  # seeds N


def splits(constants: Constants) -> dict[str, tuple[int, float]]:
    """Returns how many samples each split has, and what fraction of them is single-view."""
    return {
        "train": (constants.samples, constants.mu),
        "test_multi": (constants.tests, 0.0),
        "test_single": (constants.tests, 1.0),
    }


def random_stream(constants: Constants, number: int) -> torch.Generator:
    """Returns one of 16 random streams, so that the length of one draw does not change the other draws."""
    return torch.Generator().manual_seed(constants.seed * 16 + number)


def draw(
    constants: Constants,
    num: int,
    seeds: int,
    single_view: float,
    generator: torch.Generator,
    classes: int | None = None,
    open_world: bool = True,
) -> Samples:
    """Draws samples, of which the given fraction is single-view; of the first `classes` alone, where these are given.

    In an open world samples of these show features of the other classes too, as they always do.
    """
    classes = constants.k if classes is None else classes
    labels = torch.randint(classes, (seeds, num), generator=generator)
    strengths = _strengths(constants, labels, single_view, generator)
    if not open_world:
        strengths[..., 2 * classes :] = 0
    patches = constants.sigma * torch.randn(seeds, num, constants.P, constants.d, generator=generator)
    shape = (seeds, num, constants.P, constants.features)
    patches[..., : constants.features] += _uniform(shape, (0, constants.gamma), generator)
    return Samples(_add_features(constants, strengths, patches, generator), labels)


def draw_splits(constants: Constants) -> dict[str, Samples]:
    """Draws the training set and both test sets."""
    return {
        split: draw(constants, num, constants.seeds, single, random_stream(constants, number))
        for number, (split, (num, single)) in enumerate(splits(constants).items())
    }


def _strengths(constants: Constants, labels: Tensor, single_view: float, generator: torch.Generator) -> Tensor:
    """Returns how strong each feature is in each sample, summed over patches (seeds N features)."""
    shape = (*labels.shape, constants.features)
    single = torch.rand(labels.shape, generator=generator) < single_view
    present = torch.rand(shape, generator=generator) < constants.s / constants.k
    of_single = _uniform(shape, (constants.Gamma / 2, constants.Gamma), generator)
    strengths = present * of_single.where(single[..., None], _uniform(shape, constants.strength_off, generator))
    shown = _uniform((*labels.shape, 2), constants.strength, generator)
    lacking = _uniform((*labels.shape, 2), (constants.rho, 2 * constants.rho), generator)
    missing = torch.arange(2) == torch.randint(2, (*labels.shape, 1), generator=generator)
    features = torch.stack([2 * labels, 2 * labels + 1], dim=-1)  # the two of the sample's class
    return strengths.scatter(-1, features, lacking.where(missing & single[..., None], shown))


def _add_features(constants: Constants, strengths: Tensor, patches: Tensor, generator: torch.Generator) -> Tensor:
    """Adds each feature to patches of its own; if there are too few patches, the weakest features are left out."""
    seeds, num, patches_per_sample, width = patches.shape
    order = strengths.argsort(dim=-1, descending=True)[..., : constants.slots]
    shares = _uniform((*order.shape, constants.spread), (1 - constants.uneven, 1 + constants.uneven), generator)
    values = strengths.gather(-1, order)[..., None] * shares / shares.sum(dim=-1, keepdim=True)
    taken = order.shape[-1] * constants.spread
    chosen = torch.rand(seeds, num, patches_per_sample, generator=generator).argsort(dim=-1)[..., :taken]
    index = chosen.view_as(values) * width + order[..., None]
    return patches.view(seeds, num, -1).scatter_add(-1, index.flatten(2), values.flatten(2)).view_as(patches)


def _uniform(shape: tuple[int, ...], bounds: Range, generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)
