"""The whole image, which may be mirrored."""

from __future__ import annotations

from torch import Tensor

from mrp.data import augment
from mrp.data.augment import uniforms
from mrp.data.config import Resize as Config
from mrp.data.decode import flipped


class Augmentation(augment.Framing):
    """Mirrored by the first number of the key."""

    config: Config

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image, mirrored or not."""
        return flipped(image, (2,)) if self.config.flip and uniforms(key)[0] < 0.5 else image
