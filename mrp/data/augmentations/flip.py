"""Every second image mirrored: upside down too, where there is no up, as in images from above or of cells."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from mrp.data import augment
from mrp.data.config import Change
from mrp.data.decode import flipped


class Config(Change):
    """Mirrors images."""

    name: Literal["flip"] = "flip"
    # horizontal: exchange left and right; vertical: exchange top and bottom.
    axis: Literal["horizontal", "vertical"] = "horizontal"
    chance: float = Field(0.5, ge=0, le=1)  # the share of images that are mirrored

    @property
    def mirrors(self) -> bool:
        """Returns whether left and right are exchanged."""
        return self.axis == "horizontal"


class Augmentation(augment.Augmentation):
    """Exchanges the two ends of one axis."""

    config: Config

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the mirrored image."""
        return flipped(image, (1,) if self.config.axis == "vertical" else (2,))
