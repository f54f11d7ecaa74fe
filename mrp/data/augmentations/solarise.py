"""Bright pixels inverted."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mrp.data import augment
from mrp.data.augment import RANGES
from mrp.data.config import Change
from mrp.data.decode import UnfitError


class Config(Change):
    """Inverts every number that is at least `threshold`, in images of 8 or 16 bits."""

    name: Literal["solarise"] = "solarise"
    threshold: float = Field(0.5, ge=0, le=1)  # the smallest number that is inverted, as a share of the largest one


class Augmentation(augment.Augmentation):
    """Takes bright numbers from the largest one."""

    config: Config

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image with its bright pixels inverted."""
        if image.dtype not in RANGES:
            raise UnfitError("solarise is for images of 8 or 16 bits, whose largest number is known; leave it out")
        largest, numbers = RANGES[image.dtype], image.int()
        return torch.where(numbers >= self.config.threshold * largest, largest - numbers, numbers).to(image.dtype)
