"""Images as an evaluator wants to see them: whole, cropped, mirrored, or with patches hidden.

Each is a function of the image and the sample's key, and has a name, under which feature tables are kept apart.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from mrp.data.augment import RANGES, View, resize
from mrp.data.config import Config, Crop
from mrp.data.decode import flipped
from mrp.data.order import keys, permute

_OCCLUSION = 0x6F63636C  # the purpose of a hash, which sets it apart from others


class Changed(View):
    """A view that differs from the usual one of evaluation; the name holds everything that it is decided by."""

    name: str

    def __init__(self, config: Config, name: str | None = None) -> None:
        super().__init__(config, train=False)
        self.name = name or self.name

    @abstractmethod
    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image (C H W) as it is seen under this key."""


class Whole(Changed):
    """The whole image resized to the model's size, whatever its shape: nothing at its edges is lost."""

    name = "whole"

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns all of the image."""
        return resize(image, self.size)


class Cropped(Changed):
    """A random crop, with whatever else its section asks for, another one under each key and number."""

    def __init__(self, config: Config, crop: Crop, number: int = 0) -> None:
        super().__init__(config, f"crop {crop.model_dump_json()}" + (f" {number}" if number else ""))
        self._number = number
        self._colours = bool(crop.jitter or crop.rand)
        self._seen = View(config.model_copy(update={"augment": crop, "views": 1}), train=True)

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image as training with this crop would see it; colours change in 8 bits."""
        if image.dtype == torch.uint16 and self._colours:
            image = (image.int() // 257).to(torch.uint8)
        return self._seen(image, int(keys(self._number, 0, np.array([key]))[0]) if self._number else key)


class Mirrored(Changed):
    """What evaluation usually sees, with left and right exchanged."""

    name = "mirrored"

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the mirrored image."""
        return flipped(View.__call__(self, image, key), (2,))


class Occluded(Changed):
    """What evaluation usually sees, with a share of the patches painted in the mean colour of the data.

    The key decides which patches; those of a smaller share are among those of a larger one.
    """

    def __init__(self, config: Config, share: float, patch: tuple[int, int]) -> None:
        super().__init__(config, f"hidden {share:g} {patch[0]}x{patch[1]}")
        self._share, self._patch = share, patch
        self._colour = torch.tensor(config.mean)

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image with its hidden patches painted over."""
        image = View.__call__(self, image, key)
        rows, columns = (size // side for size, side in zip(self.size, self._patch, strict=True))
        count = rows * columns
        places = torch.from_numpy(permute(np.arange(count), count, _OCCLUSION, key))
        hidden = (places < round(self._share * count)).view(rows, 1, columns, 1)
        pixels = hidden.expand(-1, self._patch[0], -1, self._patch[1]).reshape(1, *self.size)
        largest = RANGES.get(image.dtype)
        if largest is None:  # floating-point pixels, which are in the units of the mean
            return torch.where(pixels, self._colour[:, None, None], image)
        # In int32, because torch cannot choose between numbers of 16 bits.
        colour = (self._colour * largest).round().int()
        return torch.where(pixels, colour[:, None, None], image.int()).to(image.dtype)
