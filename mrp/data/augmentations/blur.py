"""Gaussian blur."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mrp.data import augment
from mrp.data.augment import as_before, draws
from mrp.data.config import Change, two

_REACH = 3  # standard deviations beyond which weights are left out


class Config(Change):
    """Blurs images of any kind by a Gaussian; beyond the edge the pixels at the edge go on."""

    name: Literal["blur"] = "blur"
    # The standard deviation of the Gaussian in pixels, drawn evenly between these two.
    deviation: Annotated[tuple[float, float], two("deviations in pixels")] = (0.1, 2.0)


class Augmentation(augment.Augmentation):
    """Averages along the rows, then along the columns."""

    config: Config

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the blurred image."""
        low, high = self.config.deviation
        deviation = low + (high - low) * next(draws(key))
        reach = max(1, math.ceil(_REACH * deviation))
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
        weights = weights / weights.sum()
        pixels = F.pad(image.float().contiguous(), (reach, reach, reach, reach), mode="replicate")
        return as_before(_averaged(_averaged(pixels, weights.tolist(), 2), weights.tolist(), 1), image.dtype)


def _averaged(pixels: Tensor, weights: list[float], axis: int) -> Tensor:
    """Returns the weighted sums of neighbours along an axis: one addition per weight, faster than a convolution."""
    length = pixels.shape[axis] - len(weights) + 1
    out = pixels.narrow(axis, 0, length) * weights[0]
    for place, weight in enumerate(weights[1:], start=1):
        out.add_(pixels.narrow(axis, place, length), alpha=weight)
    return out
