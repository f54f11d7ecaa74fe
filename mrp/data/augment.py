"""Crop, resize, flip and colours of an image, each a pure function of the image and its key."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mrp.data import order
from mrp.data.colour import jitter, randaugment
from mrp.data.config import Config, Crop, Size
from mrp.data.decode import UnfitError, decode, decode_box
from mrp.data.source import RawImage
from mrp.data.turbojpeg import Box

_ATTEMPTS = 10
DRAWS = order.fold(0x63726F70, np.arange(1 + 4 * _ATTEMPTS))  # apart from other uses of the same key


class View:
    """Turns a decoded image into what training or evaluation sees of it, always of the same size."""

    def __init__(self, config: Config, train: bool) -> None:
        self.size = config.shape
        self.fill = tuple(min(255, round(255 * mean)) for mean in config.mean)
        self.channels = config.num_channels
        self.augment = config.augment
        self.views = config.views if train else 1
        self.train = train

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image (C H W) as it is seen under this key; evaluation ignores the key."""
        if not self.train and isinstance(self.augment, Crop):
            return centre(image, self.size, self.augment.kept(self.size))
        if not self.train:
            return resize(image, self.size)
        size, (flip, *draws) = (image.shape[1], image.shape[2]), uniforms(key)
        box = crop_box(size, self.augment, draws) if isinstance(self.augment, Crop) else (0, 0, *size)
        return self._changed(image, box, flip, key)

    def decoded(self, data: RawImage, keys: Sequence[int], *, sound: bool = False) -> list[Tensor]:
        """Returns a file's image as it is seen under each key; where they show crops, little else is decoded."""
        crop = self.augment
        if not self.train or not isinstance(crop, Crop):
            image = decode(data, self.channels)
            return [self(image, key) for key in keys]
        drawn, boxes = [uniforms(key) for key in keys], list[Box]()

        def around(size: Size) -> Box:
            boxes[:] = [crop_box(size, crop, draws) for _, *draws in drawn]
            return _around(boxes)

        image = decode_box(data, self.channels, around, sound=sound)
        top, left, *_ = _around(boxes)
        return [
            self._changed(image, (box[0] - top, box[1] - left, *box[2:]), flip, key)
            for box, (flip, *_), key in zip(boxes, drawn, keys, strict=True)
        ]

    def _changed(self, image: Tensor, box: Box, flip: float, key: int) -> Tensor:
        """Returns what is in a box of the image as training sees it."""
        top, left, height, width = box
        image = resize(image[:, top : top + height, left : left + width], self.size)
        image = image.flip(2) if self.augment.flip and flip < 0.5 else image
        return colour(image, self.augment, key, self.fill) if isinstance(self.augment, Crop) else image


def _around(boxes: list[Box]) -> Box:
    """Returns the smallest box that holds all of these."""
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return top, left, bottom - top, right - left


def uniforms(key: int) -> list[float]:
    """Returns the numbers in [0, 1) that belong to a key: one for the flip, then four for each attempt at a crop."""
    words = order.mix(DRAWS ^ np.uint64(key))
    numbers: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
    return numbers


def colour(image: Tensor, crop: Crop, key: int, fill: tuple[int, ...]) -> Tensor:
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


def crop_box(size: Size, crop: Crop, draws: list[float]) -> Box:
    """Returns top, left, height and width of a random crop.

    Four numbers are used per attempt; where no attempt fits, the crop is in the centre.
    """
    height, width = size
    low, high = (math.log(ratio) for ratio in crop.ratio)
    for attempt in range(0, len(draws), 4):
        share, shape, down, right = draws[attempt : attempt + 4]
        area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * share)
        ratio = math.exp(low + (high - low) * shape)
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h = min(height, round(width / crop.ratio[0]))
    w = min(width, round(height * crop.ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Tensor, size: Size) -> Tensor:
    """Returns the image (C H W) at exactly this size, antialiased and bicubic; unchanged if it has that size."""
    if image.shape[1:] == size:
        return image
    if image.dtype == torch.uint16:
        return interpolate(image[None].float(), size)[0].round().clamp(0, 0xFFFF).to(torch.uint16)
    return interpolate(image[None], size)[0]


def interpolate(images: Tensor, size: Size) -> Tensor:
    """Returns images (B C H W) at another size, antialiased and bicubic."""
    pixels = images.contiguous(memory_format=torch.channels_last)  # torch's fast path, also after a crop
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)


def covering(size: Size, area: Size) -> Size:
    """Returns the size at which an image of this shape just covers an area."""
    (height, width), (rows, columns) = size, area
    return (rows, rows * width // height) if rows * width >= columns * height else (columns * height // width, columns)


def centre(image: Tensor, size: Size, kept: float) -> Tensor:
    """Returns the centre of the image, a share `kept` of its shorter side; the whole image where it is of that size."""
    _, height, width = image.shape
    if (height, width) == size:
        return image
    full = covering((height, width), (int(size[0] / kept), int(size[1] / kept)))
    image = resize(image, full)
    top, left = round((full[0] - size[0]) / 2), round((full[1] - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]
