"""What a sample looks like this time: crop, resize and flip, each a pure function of the image and its key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from mrp.config import Node, nearest
from mrp.data import order
from mrp.data.colour import RandAugment, jitter, randaugment
from mrp.data.decode import UnfitError

Size = tuple[int, int]  # height, width

_ATTEMPTS = 10
_DRAWS = order.fold(0x63726F70, np.arange(1 + 4 * _ATTEMPTS))  # set apart from whatever else hashes the same key
_EVALUATION_MARGIN = 256, 224  # the short side before the centre crop, and the crop: the custom of ImageNet


class Crop(Node):
    """A random crop resized to `size`; evaluation sees the centre."""

    name: Literal["crop"] = "crop"
    scale: tuple[float, float] = (0.2, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height
    flip: bool = True
    jitter: float = Field(0, ge=0, le=1)  # brightness, contrast and saturation vary by this share, in any order
    rand: RandAugment | None = None

    @field_validator("scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"{list(value)} was given; allowed: two shares of the area, 0 < low <= high <= 1")
        return value

    @field_validator("ratio")
    @classmethod
    def _check_ratio(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"{list(value)} was given; allowed: two ratios of width to height, 0 < low <= high")
        return value


class Resize(Node):
    """The whole image resized to `size`, in training and evaluation alike: for small images of one size."""

    name: Literal["resize"] = "resize"
    flip: bool = False


_KINDS: dict[str, type[Crop] | type[Resize]] = {"crop": Crop, "resize": Resize}


def _named(value: Any) -> Any:
    """Accept a bare name for an augmentation with its usual options, and refuse a name nobody knows."""
    value = {"name": value} if isinstance(value, str) else value
    if isinstance(value, Mapping) and value.get("name") not in tuple(_KINDS):
        given = f"'{value['name']}' is unknown" if "name" in value else "a name is missing"
        raise ValueError(f"{given}; allowed: {' or '.join(_KINDS)}{nearest(str(value.get('name', '')), _KINDS)}")
    return value


def _choose(values: Any) -> type[Crop] | type[Resize] | None:
    return _KINDS.get(str(values.get("name"))) if isinstance(values, Mapping) else None


Augment = Annotated[
    Crop | Resize,
    Field(discriminator="name", json_schema_extra={"choose": _choose}),
    BeforeValidator(_named),
]


class Seen(Protocol):
    """The part of the data's configuration that decides what a sample looks like."""

    @property
    def shape(self) -> Size:
        """Height and width."""

    @property
    def channels(self) -> int:
        """Channels of every image."""

    @property
    def augment(self) -> Crop | Resize:
        """What is done in training."""

    @property
    def views(self) -> int:
        """How often each sample is seen in training."""


class View:
    """What training or evaluation makes of a decoded image, always of the same size."""

    def __init__(self, config: Seen, train: bool) -> None:
        self.size = config.shape
        self.channels = config.channels
        self.augment = config.augment
        self.views = config.views if train else 1
        self.train = train

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """The image (C H W) as it is seen under this key; evaluation ignores the key."""
        crop = isinstance(self.augment, Crop)
        if not self.train:
            return centre(image, self.size) if crop else resize(image, self.size)
        flip, *draws = uniforms(key)
        if isinstance(self.augment, Crop):
            top, left, height, width = crop_box((image.shape[1], image.shape[2]), self.augment, draws)
            image = image[:, top : top + height, left : left + width]
        image = resize(image, self.size)
        image = image.flip(2) if self.augment.flip and flip < 0.5 else image
        return colour(image, self.augment, key) if isinstance(self.augment, Crop) else image


def uniforms(key: int) -> list[float]:
    """The numbers in [0, 1) that belong to a key: one for the flip, then four for each attempt at a crop."""
    words = order.mix(_DRAWS ^ np.uint64(key))
    numbers: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
    return numbers


def colour(image: Tensor, crop: Crop, key: int) -> Tensor:
    """What comes after crop and flip, on images of one or three channels of 8 bits."""
    if not crop.jitter and crop.rand is None:
        return image
    if image.dtype != torch.uint8:
        raise UnfitError("augment.jitter and augment.rand are for images of 8 bits; leave them out")
    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[..., 0] if image.shape[0] == 1 else array)
    if crop.rand is not None:
        picture = randaugment(picture, crop.rand, key)
    if crop.jitter:
        picture = jitter(picture, crop.jitter, key)
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if image.shape[0] == 1 else pixels.permute(2, 0, 1)


def crop_box(size: Size, crop: Crop, draws: list[float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, from four draws an attempt; the centre when no attempt fits."""
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
    """The image (C H W) at exactly this size, antialiased and bicubic; itself where it has that size already."""
    if image.shape[1:] == size:
        return image
    if image.dtype == torch.uint16:
        return _interpolate(image.float(), size).round().clamp(0, 0xFFFF).to(torch.uint16)
    return _interpolate(image, size)


def _interpolate(image: Tensor, size: Size) -> Tensor:
    pixels = image[None].contiguous(memory_format=torch.channels_last)  # torch's fast path, also after a crop
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True)[0]


def centre(image: Tensor, size: Size) -> Tensor:
    """The centre of the image, which is first resized to just cover `size` and its margin; itself if of that size."""
    _, height, width = image.shape
    if (height, width) == size:
        return image
    before, after = _EVALUATION_MARGIN
    covered = round(size[0] * before / after), round(size[1] * before / after)
    if covered[0] * width >= covered[1] * height:
        full = covered[0], covered[0] * width // height
    else:
        full = covered[1] * height // width, covered[1]
    image = resize(image, full)
    top, left = round((full[0] - size[0]) / 2), round((full[1] - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]
