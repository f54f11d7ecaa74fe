"""Changes after the crop: colour jitter, and RandAugment (Cubuk et al., 2020), pure functions of the key.

RandAugment is the variant of the published fine-tuning recipes, which they write as rand-m9-mstd0.5-inc1: two
operations per image, each done half of the time; every strength grows with the magnitude, which varies a little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mrp.data import order
from mrp.data.config import HIGHEST_MAGNITUDE, RandAugment

_JITTER, _RAND = 0x6A697474, 0x72616E64  # the purpose of a hash, which sets it apart from others


def draws(purpose: int, key: int) -> Iterator[float]:
    """Yields the numbers in [0, 1) that belong to the key."""
    for word in order.fold(purpose, key, np.arange(64)).tolist():
        yield (word >> 11) * 2.0**-53


def jitter(image: Image.Image, strength: float, key: int) -> Image.Image:
    """Multiply brightness, contrast and saturation by 1 - strength to 1 + strength, in any order."""
    numbers = draws(_JITTER, key)
    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    for kind in sorted(kinds, key=lambda _: next(numbers)):
        image = kind(image).enhance(1 + strength * (2 * next(numbers) - 1))
    return image


def randaugment(image: Image.Image, config: RandAugment, key: int, fill: tuple[int, ...]) -> Image.Image:
    """Apply operations drawn with replacement, each with probability one half; `fill` is where the image is moved away.

    The fill is one number per channel, the mean of the data.
    """
    numbers = draws(_RAND, key)
    for _ in range(config.operations):
        chosen, done, first, second, sign = (next(numbers) for _ in range(5))
        if done < 0.5:
            continue
        normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
        magnitude = min(max(config.magnitude + config.deviation * normal, 0), HIGHEST_MAGNITUDE) / HIGHEST_MAGNITUDE
        operation = _OPERATIONS[int(chosen * len(_OPERATIONS))]
        image = operation(image, magnitude, 1 if sign < 0.5 else -1, fill)
    return image


Fill = tuple[int, ...]  # per channel
Operation = Callable[[Image.Image, float, int, Fill], Image.Image]  # image, magnitude in 0..1, sign, fill


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, magnitude, sign, fill: kind(image).enhance(max(0.1, 1 + 0.9 * magnitude * sign))


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    bicubic = Image.Resampling.BICUBIC
    return image.transform(image.size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=_of(image, fill))


def _rotate(image: Image.Image, magnitude: float, sign: int, fill: Fill) -> Image.Image:
    return image.rotate(30 * magnitude * sign, Image.Resampling.BICUBIC, fillcolor=_of(image, fill))


def _of(image: Image.Image, fill: Fill) -> int | Fill:
    """Returns the fill as Pillow takes it for images of this mode."""
    return fill if image.mode == "RGB" else fill[0]


def _solarize_add(image: Image.Image, magnitude: float, sign: int, fill: Fill) -> Image.Image:
    """Makes dark pixels lighter."""
    table = [min(255, value + int(110 * magnitude)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


_OPERATIONS: tuple[Operation, ...] = (
    lambda image, magnitude, sign, fill: ImageOps.autocontrast(image),
    lambda image, magnitude, sign, fill: ImageOps.equalize(image),
    lambda image, magnitude, sign, fill: ImageOps.invert(image),
    _rotate,
    lambda image, magnitude, sign, fill: ImageOps.posterize(image, max(1, 4 - int(4 * magnitude))),
    lambda image, magnitude, sign, fill: ImageOps.solarize(image, 256 - int(256 * magnitude)),
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda image, magnitude, sign, fill: _affine(image, (1, 0.3 * magnitude * sign, 0, 0, 1, 0), fill),
    lambda image, magnitude, sign, fill: _affine(image, (1, 0, 0, 0.3 * magnitude * sign, 1, 0), fill),
    lambda image, magnitude, sign, fill: _affine(image, (1, 0, 0.45 * magnitude * sign * image.size[0], 0, 1, 0), fill),
    lambda image, magnitude, sign, fill: _affine(image, (1, 0, 0, 0, 1, 0.45 * magnitude * sign * image.size[1]), fill),
)
