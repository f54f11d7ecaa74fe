"""Colours left out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mrp.data import augment
from mrp.data.config import Change, Size
from mrp.data.decode import with_channels


class Config(Change):
    """Shows the brightness of each pixel in all three channels, as the conversion of images to one channel has it."""

    name: Literal["grey"] = "grey"

    def unfit(self, channels: int, size: Size) -> str | None:
        """Refuses all but colours."""
        return None if channels == 3 else f"grey is for 3 channels, and there are {channels}; leave it out"


class Augmentation(augment.Augmentation):
    """Takes the brightness three times."""

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image in grey."""
        luma = with_channels(image.permute(1, 2, 0).numpy(), 1)
        return torch.from_numpy(luma).permute(2, 0, 1).expand_as(image)
