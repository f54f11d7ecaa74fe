"""Turns by 0, 90, 180 or 270 degrees, which interpolate nothing: for images that have no up."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mrp.data import augment
from mrp.data.augment import draws
from mrp.data.config import Change, Size
from mrp.data.decode import flipped


class Config(Change):
    """Turns square images by a multiple of 90 degrees, each as often as the others."""

    name: Literal["rotate90"] = "rotate90"

    def unfit(self, channels: int, size: Size) -> str | None:
        """Refuses images that would have another shape afterwards."""
        if size[0] == size[1]:
            return None
        return f"rotate90 is for square images, and data.size is {list(size)}; take flip along both axes instead"


class Augmentation(augment.Augmentation):
    """Turns by a number of quarters."""

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the turned image."""
        quarters = int(4 * next(draws(key)))
        image = flipped(image, ((), (2,), (1, 2), (1,))[quarters])
        return image.transpose(1, 2) if quarters % 2 else image
