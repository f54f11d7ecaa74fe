"""Samples of the multi-view data model: a class has two features, and a single-view sample shows only one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrp.lab.multiview.constants import Range, Settings


@dataclass(frozen=True, slots=True)
class Samples:
    """One data set a seed."""

    patches: Tensor  # seeds N P d
    labels: Tensor  # seeds N


def draw(settings: Settings, num: int, seeds: int, single_view: float, generator: torch.Generator) -> Samples:
    """Samples of which a given fraction is single-view."""
    labels = torch.randint(settings.k, (seeds, num), generator=generator)
    strengths = _strengths(settings, labels, single_view, generator)
    patches = settings.sigma * torch.randn(seeds, num, settings.P, settings.d, generator=generator)
    everywhere = (seeds, num, settings.P, settings.features)
    patches[..., : settings.features] += _uniform(everywhere, (0, settings.gamma), generator)
    return Samples(_place(settings, strengths, patches, generator), labels)


def _strengths(settings: Settings, labels: Tensor, single_view: float, generator: torch.Generator) -> Tensor:
    """How strong each feature is in each sample, summed over patches; seeds N features."""
    shape = (*labels.shape, settings.features)
    single = torch.rand(labels.shape, generator=generator) < single_view
    present = torch.rand(shape, generator=generator) < settings.s / settings.k
    of_single = _uniform(shape, (settings.Gamma / 2, settings.Gamma), generator)
    strengths = present * of_single.where(single[..., None], _uniform(shape, settings.strength_off, generator))
    of_label = _uniform((*labels.shape, 2), settings.strength, generator)
    lacking = _uniform((*labels.shape, 2), (settings.rho, 2 * settings.rho), generator)
    missing = torch.arange(2) == torch.randint(2, (*labels.shape, 1), generator=generator)
    of_label = lacking.where(missing & single[..., None], of_label)
    return strengths.scatter(-1, _of_label(labels), of_label)


def _of_label(labels: Tensor) -> Tensor:
    """The two features of each sample's class."""
    return torch.stack([2 * labels, 2 * labels + 1], dim=-1)


def _place(settings: Settings, strengths: Tensor, patches: Tensor, generator: torch.Generator) -> Tensor:
    """Add each feature to patches of its own; should they not suffice, the weakest are left out."""
    seeds, num, places, width = patches.shape
    order = strengths.argsort(dim=-1, descending=True)[..., : settings.slots]
    shares = _uniform((*order.shape, settings.spread), (1 - settings.uneven, 1 + settings.uneven), generator)
    values = strengths.gather(-1, order)[..., None] * shares / shares.sum(dim=-1, keepdim=True)
    taken = order.shape[-1] * settings.spread
    where = torch.rand(seeds, num, places, generator=generator).argsort(dim=-1)[..., :taken]
    index = where.view_as(values) * width + order[..., None]
    return patches.view(seeds, num, -1).scatter_add(-1, index.flatten(2), values.flatten(2)).view_as(patches)


def _uniform(shape: tuple[int, ...], bounds: Range, generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)
