"""The whole image, which may be mirrored."""

from __future__ import annotations

from torch import Tensor

from mrp.data import augment
from mrp.data.augment import Images, uniforms
from mrp.data.config import Resize as Config


class Augmentation(augment.Framing):
    """Mirrored by the first number of the key."""

    def __init__(self, config: Config, images: Images) -> None:
        super().__init__(config, images)
        self._flip = config.flip

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image, mirrored or not."""
        return image.flip(2) if self._flip and uniforms(key)[0] < 0.5 else image
