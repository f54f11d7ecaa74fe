"""A world of images so small that the graph of every mask can be written down: the check of what is estimated.

Images have a few patches of a few values. A class is a mixture of two styles, and given its style a patch is
independent of the others, so what is visible says something, but not all, of what is hidden and of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mrp.lab.maskgraph.graph import SPECTRUM, residual

GRID = (2, 3)
STYLES = 2  # of each class


@dataclass(frozen=True, slots=True)
class World:
    """All images (rows of patches, values in 0..1) with their probability under each class."""

    images: Tensor  # X P
    joint: Tensor  # C X: p(class, image)
    values: int

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return self.images.shape[1]

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Images and labels."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(self.joint.flatten(), count, replacement=True, generator=generator)
        return self.images[drawn % len(self.images)].float(), drawn // len(self.images)


def make(classes: int = 2, values: int = 3, sharpness: float = 1.5, seed: int = 0) -> World:
    """The world of a seed; the sharper, the more a patch says of its style."""
    patches = GRID[0] * GRID[1]
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(classes * STYLES, patches, values, generator=generator, dtype=torch.float64)
    shares = logits.softmax(-1)
    codes = torch.cartesian_prod(*[torch.arange(values)] * patches)  # X P
    of_style = shares[:, torch.arange(patches), codes].prod(-1)  # S X
    joint = of_style.unflatten(0, (classes, STYLES)).mean(1) / classes
    return World(codes.double() / (values - 1), joint, values)


def exact(world: World, mask: Tensor, features: int) -> tuple[dict[str, float], Tensor]:
    """What `graph.measure` estimates for this mask, summed over all images."""
    shape = (-1, *[world.values] * world.patches)
    places = [0, *(1 + (~mask).nonzero()[:, 0]), *(1 + mask.nonzero()[:, 0])]
    sides = (len(world.joint), world.values ** int((~mask).sum()), world.values ** int(mask.sum()))
    joint = world.joint.reshape(shape).permute([int(place) for place in places]).reshape(sides)  # C X1 X2
    both = joint.sum(0)  # X1 X2
    visible, hidden = both.sum(1), both.sum(0)
    named = joint.sum(2).T / visible[:, None]  # X1 C: p(class|x1)
    reached = (both / hidden).T @ named  # X2 C: the classes of the visible views that share a target
    normalised = both / (visible[:, None] * hidden).sqrt()
    eigenvalues = torch.linalg.svdvals(normalised).square()
    found = {
        "label_error": 1 - joint.sum(2).amax(0).sum(),
        "same_class": (joint.sum(1).square() / hidden).sum(),
        "same_class_views": (hidden[:, None] * reached.square()).sum(),
        "confusable": hidden.square().sum(),
        "second": eigenvalues[1],
        "residual": residual(eigenvalues, features),
    }
    largest = torch.zeros(SPECTRUM, dtype=torch.float64)
    largest[: len(eigenvalues)] = eigenvalues[:SPECTRUM]
    return {name: float(value) for name, value in found.items()}, largest
