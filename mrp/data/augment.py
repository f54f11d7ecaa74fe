"""What training and evaluation see of an image: pure functions of the image and its key.

An augmentation is one file in `mrp/data/augmentations/`, or a file of a user's own, with `Config` and `Augmentation`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mrp.config import ConfigError
from mrp.data import colour, order
from mrp.data.augmentations import AUGMENTATIONS
from mrp.data.config import Augment, Change, Config, Crop, Interpolation, Size
from mrp.data.decode import decode, decode_box
from mrp.data.order import Words
from mrp.data.source import Partial, RawImage
from mrp.data.turbojpeg import Box

RANGES = {torch.uint8: 0xFF, torch.uint16: 0xFFFF}  # the largest number of each kind that has one
_ATTEMPTS = 10
_DRAWS = order.fold(0x63726F70, np.arange(1 + 4 * _ATTEMPTS))  # apart from other uses of the same key
_CHAIN, _OWN = 0x636861696E, 0x6F776E  # likewise


class Images(NamedTuple):
    """What an augmentation knows of the images."""

    size: Size
    channels: int
    mean: tuple[float, ...]  # per channel, in [0, 1]

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean in 8 bits, for places where an image has no pixels."""
        return tuple(min(255, round(255 * mean)) for mean in self.mean)


class Augmentation(ABC):
    """A change of images that training sees, behind the crop. All that is random in it follows from the key."""

    config: Any  # the options of its kind

    def __init__(self, config: Augment, images: Images) -> None:
        self.config, self.images = config, images

    @abstractmethod
    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image (C H W) as it is seen under this key, of the same shape and kind of numbers.

        An image that it is not made for is an `UnfitError` that says what to do.
        """

    def __reduce__(self) -> Any:
        """A worker process knows nothing of a user's own file, so it is built there anew."""
        return _built, (self.config.model_dump(mode="json"), self.images)


class Framing(Augmentation):
    """The first of a chain: it chooses the box of an image that is resized, and may change the result."""

    def box(self, size: Size, key: int) -> Box:
        """Returns top, left, height and width of what is seen of an image of this height and width; here all of it."""
        return 0, 0, *size


def _built(section: Mapping[str, Any] | Augment, images: Images) -> Any:
    config = AUGMENTATIONS.read(section)
    return AUGMENTATIONS.of(config).Augmentation(config, images)


def _checked(section: Augment, images: Images) -> Any:
    augmentation = _built(section, images)
    ours = type(augmentation).__module__.startswith("mrp.")
    return augmentation if ours else _Own(augmentation, str(getattr(section, "name")))  # noqa: B009


class _Own:
    """An augmentation of one's own: it gets an image that it may change, and has to return one like it."""

    def __init__(self, augmentation: Any, name: str) -> None:
        self._augmentation, self._name = augmentation, name

    def __call__(self, image: Tensor, key: int) -> Tensor:
        given, found = (image.dtype, tuple(image.shape)), self._augmentation(image.clone(), key)
        kind, shape = getattr(found, "dtype", None), tuple(getattr(found, "shape", ()))
        if not isinstance(found, Tensor) or (kind, shape) != given:
            what = f"a tensor of {kind} and shape {shape}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ConfigError(
                f"{self._name}: returns {what} for an image of {given[0]} and shape {given[1]}; return a tensor like "
                "it (mrp.data.augment.as_before gives it the same kind of numbers)"
            )
        return found

    def box(self, size: Size, key: int) -> Box:
        """Returns the box that the first of a chain chooses."""
        top, left, height, width = box = tuple(self._augmentation.box(size, key))
        if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
            raise ConfigError(
                f"{self._name}: chooses the box {box} (top, left, height, width) of an image of {size[0]} x {size[1]} "
                "pixels; choose one that lies inside"
            )
        return box


class View:
    """Turns a decoded image into what training or evaluation sees of it, always of the same size."""

    def __init__(self, config: Config, train: bool) -> None:
        self.size, self.channels = config.shape, config.num_channels
        self.views = config.views if train else 1
        self.train = train
        self._kept = config.frame.kept(config.shape)
        self._mean = np.array(config.mean)
        self._how: Interpolation = getattr(config.frame, "interpolation", "bicubic")  # of crops
        if train:
            images = Images(config.shape, config.num_channels, config.mean)
            self._frame, *self._changes = (_checked(augment, images) for augment in config.chain)
            self._chances = [augment.chance for augment in config.chain if isinstance(augment, Change)]

    def __call__(self, image: Tensor, key: int) -> Tensor:
        """Returns the image (C H W) as it is seen under this key; evaluation ignores the key."""
        if self.train:
            return self._changed(image, self._frame.box((image.shape[1], image.shape[2]), key), key)
        return resize(image, self.size) if self._kept is None else centre(image, self.size, self._kept)

    def decoded(self, data: RawImage, keys: Sequence[int], *, sound: bool = False) -> list[Tensor]:
        """Returns a file's image as it is seen under each key; where they show crops, little else is decoded."""
        data = self._filled(data) if isinstance(data, Partial) else data
        if not self.train:
            image = decode(data, self.channels)
            return [self(image, key) for key in keys]
        boxes = list[Box]()

        def around(size: Size) -> Box:
            boxes[:] = [self._frame.box(size, key) for key in keys]
            return _around(boxes)

        image = decode_box(data, self.channels, around, sound=sound)
        top, left, *_ = _around(boxes)
        moved = [(box[0] - top, box[1] - left, *box[2:]) for box in boxes]
        return [self._changed(image, box, key) for box, key in zip(moved, keys, strict=True)]

    def _filled(self, data: Partial) -> RawImage:
        """Returns pixels with the mean in the channels that they lack, for what looks at images alone (pictures)."""
        pixels, present = data
        if pixels.shape[2] != self.channels:
            return data  # an error of the decoder
        most = {1: 0xFF, 2: 0xFFFF}.get(pixels.dtype.itemsize)  # of whole numbers
        mean = self._mean if most is None else (self._mean * most).round().clip(0, most)
        return data._replace(pixels=np.where(present, pixels, mean.astype(pixels.dtype)))

    def _changed(self, image: Tensor, box: Box, key: int) -> Tensor:
        """Returns what is in a box of the image as training sees it."""
        top, left, height, width = box
        image = self._frame(resize(image[:, top : top + height, left : left + width], self.size, self._how), key)
        if self._changes:
            words = (order.fold(_CHAIN, key, np.arange(2 * len(self._changes))) >> np.uint64(1)).reshape(2, -1)
            done = words[0] * 2.0**-63 < self._chances
            for change, do, own_key in zip(self._changes, done.tolist(), words[1].tolist(), strict=True):
                image = change(image, own_key) if do else image
        return image


def _around(boxes: list[Box]) -> Box:
    """Returns the smallest box that holds all of these."""
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return top, left, bottom - top, right - left


def uniforms(key: int) -> list[float]:
    """Returns the numbers in [0, 1) that belong to a key: one for the flip, then four for each attempt at a crop."""
    numbers: list[float] = uniforms_of(np.uint64(key)).tolist()
    return numbers


def uniforms_of(keys: np.uint64 | Words) -> NDArray[np.float64]:
    """Returns the same for one key or for a column of keys."""
    return (order.mix(_DRAWS ^ keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draws(key: int) -> Iterator[float]:
    """Yields up to 64 numbers in [0, 1) that belong to the key of one augmentation."""
    return colour.draws(_OWN, key)


def as_before(pixels: Tensor, kind: torch.dtype) -> Tensor:
    """Returns pixels as numbers of the kind that they had, rounded into its range where it has one."""
    return pixels if kind not in RANGES else pixels.round().clamp(0, RANGES[kind]).to(kind)


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


def resize(image: Tensor, size: Size, how: Interpolation = "bicubic") -> Tensor:
    """Returns the image (C H W) at exactly this size, antialiased; unchanged if it has that size."""
    if image.shape[1:] == size:
        return image
    if image.dtype == torch.uint16:
        return as_before(interpolate(image[None].float(), size, how)[0], image.dtype)
    return interpolate(image[None], size, how)[0]


def interpolate(images: Tensor, size: Size, how: Interpolation = "bicubic") -> Tensor:
    """Returns images (B C H W) at another size, antialiased."""
    pixels = images.contiguous(memory_format=torch.channels_last)  # torch's fast path, also after a crop
    return F.interpolate(pixels, size=size, mode=how, antialias=True)


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
