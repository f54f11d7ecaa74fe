"""A random crop, which may be mirrored and have other colours."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrp.data import augment
from mrp.data.augment import crop_box, uniforms
from mrp.data.colour import jitter, randaugment
from mrp.data.config import Crop as Config
from mrp.data.config import Size
from mrp.data.decode import UnfitError, flipped
from mrp.data.turbojpeg import Box


class Augmentation(augment.Framing):
    """Mirrored by the first number of the key; where the crop lies is decided by the others."""

    config: Config

    def box(self, size: Size, key: int) -> Box:
        """Returns a random box."""
        return crop_box(size, self.config, uniforms(key)[1:])

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the crop, mirrored or not, in its colours."""
        image = flipped(image, (2,)) if self.config.flip and uniforms(key)[0] < 0.5 else image
        return colour(image, self.config, key, self.images.fill)


def colour(image: Tensor, crop: Config, key: int, fill: tuple[int, ...]) -> Tensor:
    """Change the colours after crop and flip, of images with one or three channels of 8 bits."""
    if not crop.jitter and crop.rand is None:
        return image
    if image.dtype != torch.uint8:
        raise UnfitError("augment.jitter and augment.rand are for images of 8 bits; leave them out")
    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[..., 0] if image.shape[0] == 1 else array)
    if crop.rand is not None:
        picture = randaugment(picture, crop.rand, key, fill)
    if crop.jitter:
        picture = jitter(picture, crop.jitter, key)
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if image.shape[0] == 1 else pixels.permute(2, 0, 1)
