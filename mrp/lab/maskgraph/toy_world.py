"""A world of images so small that the graph of every mask is known exactly, to check the estimates.

Images have a few patches with a few values. A class is a mixture of two styles. Given the style, a patch is independent
of the others, so the visible patches say something, but not everything, about the hidden ones and about the class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mrp.lab.maskgraph.graph import Measured, with_spectrum

GRID = (2, 3)
STYLES = 2  # per class
TRENDS = ("label_error", "same_class_views", "residual")  # the measures that the mask ratio changes


@dataclass(frozen=True, slots=True)
class World:
    """All images (rows of patches, values in 0..1), and their probability together with each class."""

    images: Tensor  # X P
    joint: Tensor  # C X: p(class, image)
    values: int

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        return self.images.shape[1]

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Returns images and labels."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(self.joint.flatten(), count, replacement=True, generator=generator)
        return self.images[drawn % len(self.images)].float(), drawn // len(self.images)


def make(classes: int = 2, values: int = 3, sharpness: float = 1.5, seed: int = 0) -> World:
    """Returns the world of a seed; the larger `sharpness`, the more a patch says about its style."""
    patches = GRID[0] * GRID[1]
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(classes * STYLES, patches, values, generator=generator, dtype=torch.float64)
    shares = logits.softmax(-1)
    codes = torch.cartesian_prod(*[torch.arange(values)] * patches)  # X P
    of_style = shares[:, torch.arange(patches), codes].prod(-1)  # S X
    joint = of_style.unflatten(0, (classes, STYLES)).mean(1) / classes
    return World(codes.double() / (values - 1), joint, values)


def exact(world: World, mask: Tensor, target: int, features: int) -> Measured:
    """Returns what `graph.measure` estimates for this mask and hidden patch, summed over all images."""
    shape = (-1, *[world.values] * world.patches)
    others = mask.clone().index_fill_(0, torch.tensor(target), False)  # hidden, and not the target
    axes = [0, *(1 + (~mask).nonzero()[:, 0]).tolist(), 1 + target, *(1 + others.nonzero()[:, 0]).tolist()]
    sides = (len(world.joint), world.values ** int((~mask).sum()), world.values, -1)
    joint = world.joint.reshape(shape).permute(axes).reshape(sides).sum(-1)  # C X1 X2
    both = joint.sum(0)  # X1 X2
    visible, hidden = both.sum(1), both.sum(0)
    by_view = joint.sum(2).T / visible[:, None]  # X1 C: p(class|x1)
    reached = (both / hidden).T @ by_view  # X2 C: the classes of the visible views that share a target
    values = {
        "label_error": 1 - joint.sum(2).amax(0).sum(),
        "same_class": (joint.sum(1).square() / hidden).sum(),
        "same_class_views": (hidden[:, None] * reached.square()).sum(),
        "confusable": hidden.square().sum(),
    }
    normalised = both / (visible[:, None] * hidden).sqrt()
    eigenvalues = torch.linalg.eigvalsh(normalised.T @ normalised).clamp(0, 1).flip(0)
    return with_spectrum(values, eigenvalues, features)


def pairs(patches: int, hidden: int) -> Iterator[tuple[Tensor, int]]:
    """Yields every mask that hides so many patches, with every patch that it hides as the target."""
    for chosen in itertools.combinations(range(patches), hidden):
        mask = torch.zeros(patches, dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)
        yield from ((mask, target) for target in chosen)


def monotone(worlds: int, features: int) -> dict[str, int]:
    """Returns in how many worlds, of other seeds, each exact measure rises or falls at every step of the mask ratio."""
    counts = {f"{name} {word}": 0 for name in TRENDS for word in ("rises", "falls")}
    for seed in range(worlds):
        world = make(seed=seed)
        curves = []
        for hidden in range(1, world.patches):
            measured = [exact(world, *pair, features)[0] for pair in pairs(world.patches, hidden)]
            curves.append([sum(values[name] for values in measured) / len(measured) for name in TRENDS])
        for name, curve in zip(TRENDS, zip(*curves, strict=True), strict=True):
            counts[f"{name} rises"] += all(after > before for before, after in itertools.pairwise(curve))
            counts[f"{name} falls"] += all(after < before for before, after in itertools.pairwise(curve))
    return counts
