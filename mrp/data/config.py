"""The sections of the configuration that are about data. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator

from mrp.config import Node
from mrp.data.augmentations import AUGMENTATIONS
from mrp.data.groups import compiled
from mrp.data.labels import Labels
from mrp.data.sources import SOURCES
from mrp.outside import SUFFIX

Size = tuple[int, int]  # height, width

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OTHER_MEAN, _OTHER_STD = 0.5, 0.25
HIGHEST_MAGNITUDE = 10.0
_MOST_CHANNELS = 1 << 16
_KEPT = 224 / 256  # the custom of ImageNet


def _positive(sides: int | Size) -> int | Size:
    if np.min(sides) < 1:
        raise ValueError(f"{sides} was given; allowed: numbers from 1")
    return sides


Sides = Annotated[int | tuple[int, int], AfterValidator(_positive)]  # one for both, or height and width


def two(what: str, most: float = math.inf) -> AfterValidator:
    """Returns the check of an option of two numbers, the lower one first, which are both above 0."""

    def check(value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= most:
            limit = "" if most == math.inf else f" <= {most:g}"
            raise ValueError(f"{list(value)} was given; allowed: two {what}, 0 < low <= high{limit}")
        return value

    return AfterValidator(check)


class CacheConfig(Node):
    """`machine.cache:`, where each node keeps the remote shards that it has fetched."""

    folder: str = ""  # the cache's folder; by default `mrp` in the user's cache folder
    gib: float = Field(100, gt=0)  # the most that the cache holds, in GiB


class RandAugment(Node):
    """`rand:` of a crop: RandAugment."""

    magnitude: float = Field(9, ge=0, le=HIGHEST_MAGNITUDE)  # how strong each operation is
    deviation: float = Field(0.5, ge=0)  # standard deviation of the magnitude from operation to operation
    operations: int = Field(2, ge=1, le=8)  # how many operations change an image


class Augment(Node):
    """An augmentation, and what it says of itself."""

    short: ClassVar[type | None] = str

    @property
    def mirrors(self) -> bool:
        """Returns whether left and right may be exchanged: an image and its mirror image then mean the same."""
        return False

    def unfit(self, channels: int, size: Size) -> str | None:
        """Returns why it is not for images of this kind, and what to do, in one line; None where it is."""
        return None


Interpolation = Literal["bicubic", "bilinear"]


class Frame(Augment):
    """The first of a chain, which makes all images one size: training sees a part of them, evaluation a central one."""

    def kept(self, size: Size) -> float | None:
        """Returns the share of the resized image's shorter side that evaluation keeps; None where it sees all of it."""
        return None


class Change(Augment):
    """An augmentation behind the first one, which leaves the size as it is."""

    chance: float = Field(1, ge=0, le=1)  # the share of images that are changed


class Crop(Frame):
    """A random crop resized to `size`; evaluation sees the centre of the image, resized too unless it has that size."""

    name: Literal["crop"] = "crop"
    # The share of the image's area that a crop covers, at the least and at the most.
    scale: Annotated[tuple[float, float], two("shares of the area", 1)] = (0.2, 1.0)
    # The width of a crop over its height, at the least and at the most.
    ratio: Annotated[tuple[float, float], two("ratios of width to height")] = (3 / 4, 4 / 3)
    flip: bool = True  # mirror every second image, at random
    interpolation: Interpolation = "bicubic"  # how a crop is resized; evaluation is always bicubic
    jitter: float = Field(0, ge=0, le=1)  # brightness, contrast and saturation vary by this share, in any order
    rand: RandAugment | None = None  # RandAugment, which changes a crop by operations that are drawn; null: none
    # From this size on (the shorter side of `size`), evaluation sees the whole shorter side of an image; below this
    # size it sees 224/256 of that side. null: 224/256 at every size.
    whole_from: int | None = Field(None, gt=0)

    @property
    def mirrors(self) -> bool:
        """Returns `flip`."""
        return self.flip

    def unfit(self, channels: int, size: Size) -> str | None:
        """Refuses colours that there are no operations for."""
        if channels in (1, 3) or not (self.jitter or self.rand):
            return None
        return f"jitter and rand are for 1 or 3 channels, and there are {channels}; leave them out"

    def kept(self, size: Size) -> float:
        """Returns the share of the resized image's shorter side that evaluation keeps for images of this size."""
        return 1.0 if self.whole_from is not None and min(size) >= self.whole_from else _KEPT


class Resize(Frame):
    """The whole image resized to `size`, in training and evaluation alike: for small images of one size."""

    name: Literal["resize"] = "resize"
    flip: bool = False  # mirror every second image, at random

    @property
    def mirrors(self) -> bool:
        """Returns `flip`."""
        return self.flip


_AugmentKeys = Field(json_schema_extra={"choose": AUGMENTATIONS.config_of})  # type: ignore[dict-item]
AugmentName = Annotated[SerializeAsAny[Augment], BeforeValidator(AUGMENTATIONS.read), _AugmentKeys]


def _read_source(value: Any) -> Any:
    file = isinstance(value, str) and value.endswith(SUFFIX) and "://" not in value
    return SOURCES.read(value) if file or isinstance(value, Mapping) else value


# A text, whose kind of source is recognised when it is opened, or a section that names the kind.
SourceName = Annotated[SerializeAsAny[Node] | str, BeforeValidator(_read_source)]
_SourceKeys = Field(json_schema_extra={"choose": SOURCES.config_of})  # type: ignore[dict-item]


class Weighted(Node):
    """One of several sources that are mixed."""

    source: Annotated[SourceName, _SourceKeys]
    weight: float = Field(gt=0)  # the source's share of each batch is in proportion to this
    classes: str | None = None
    fraction: float | None = Field(None, gt=0, le=1)


def _count(channels: int | tuple[str, ...]) -> int:
    return channels if isinstance(channels, int) else len(channels)


def _name(augment: Augment) -> str:
    name: str = getattr(augment, "name")  # noqa: B009 -- every augmentation's options have one, of its own type
    return name


_NUMBER: dict[str, Any] = {"short": float}  # a number alone is short for the list


class Config(Node):
    """`data:`, the images of a run and what is made of them."""

    # The training data: a path, an address or the name of a source, a section, or a list of sources to mix.
    train: Annotated[SourceName | tuple[Weighted, ...], _SourceKeys]
    # The test data: a path, an address or the name of a source, or a section; null: none.
    test: Annotated[SourceName | None, _SourceKeys] = None
    classes: str | None = None  # take only these classes: a file with one name per line, or a list that comes with mrp
    fraction: float | None = Field(None, gt=0, le=1)  # take only this share of the training samples of each class
    # A table that gives each image a class, or tags, in place of what the source itself says.
    labels: Labels | None = None
    # A regular expression for the part of an image's name that tells its group (one patient, plate or scene); where it
    # has brackets, only what they match counts. A group is held out together, and intervals count groups.
    group: str | None = None
    size: Sides  # height and width of the images that the model sees
    channels: int | tuple[str, ...] = 3  # channels per pixel: how many, or their names, by which a source finds them
    # The mean of pixels in [0, 1], which is subtracted: one number, or one per channel; by default ImageNet's for 3
    # channels, else 0.5.
    mean: tuple[float, ...] = Field((), json_schema_extra=_NUMBER)
    # The standard deviation of pixels, which they are divided by; by default ImageNet's for 3 channels, else 0.25.
    std: tuple[float, ...] = Field((), json_schema_extra=_NUMBER)
    # What training sees of an image: crop or resize alone, or a list of one of them and of further augmentations.
    augment: Annotated[AugmentName | Annotated[tuple[AugmentName, ...], Field(min_length=1)], _AugmentKeys] = Crop()
    views: int = Field(1, ge=1)  # how many images of each sample a batch holds, all from one decode
    # drop: leave out what does not fill an epoch's last batch; continuous: batches span epochs.
    tail: Literal["drop", "continuous"] = "drop"
    # Into how many lanes shards are divided: a multiple of the nodes, where each node should fetch only its part of
    # remote shards.
    lanes: int = Field(1, ge=1)
    window: int = Field(16, ge=1)  # how many shards of a lane are shuffled together
    damaged: int = Field(100, ge=0)  # how many samples may turn out to be no images before the run stops

    @property
    def shape(self) -> Size:
        """Height and width of every image."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def num_channels(self) -> int:
        """How many channels an image has."""
        return _count(self.channels)

    @property
    def chain(self) -> tuple[Augment, ...]:
        """Every augmentation, in order."""
        return self.augment if isinstance(self.augment, tuple) else (self.augment,)

    @property
    def frame(self) -> Frame:
        """The first augmentation."""
        frame = self.chain[0]
        assert isinstance(frame, Frame), "checked when the section is read"
        return frame

    @property
    def mirrors(self) -> bool:
        """Returns whether training mirrors images."""
        return any(augment.mirrors for augment in self.chain)

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, value: int | tuple[str, ...]) -> int | tuple[str, ...]:
        if not 1 <= _count(value) <= _MOST_CHANNELS or (isinstance(value, tuple) and len(set(value)) < len(value)):
            given = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{given} was given; allowed: a number from 1 to {_MOST_CHANNELS}, or a list of names")
        return value

    @field_validator("group")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        compiled(value or "")
        return value

    @field_validator("train")
    @classmethod
    def _check_any_source(cls, value: Any) -> Any:
        if value == ():
            raise ValueError("nothing was given; allowed: a source, or a list of sources with weights")
        return value

    @field_validator("augment")
    @classmethod
    def _check_chain(cls, value: Augment | tuple[Augment, ...], info: ValidationInfo) -> Augment | tuple[Augment, ...]:
        first, *others = value if isinstance(value, tuple) else (value,)
        misplaced = [one for one in others if not isinstance(one, Change)]
        if not isinstance(first, Frame):
            raise ValueError(f"{_name(first)} stands first, where crop or resize is needed: [crop, {_name(first)}]")
        if misplaced:
            raise ValueError(f"{_name(misplaced[0])} stands behind {_name(first)}, and can only be the first; take one")
        if "channels" in info.data and "size" in info.data:
            size = info.data["size"]
            shape = (size, size) if isinstance(size, int) else size
            reasons = (one.unfit(_count(info.data["channels"]), shape) for one in (first, *others))
            if reason := next(filter(None, reasons), None):
                raise ValueError(reason)
        return value if others else first

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _accept_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = _count(info.data.get("channels", len(value)))
        mean = info.field_name == "mean"
        if not value and channels == 3:
            return _IMAGENET_MEAN if mean else _IMAGENET_STD
        value = value or (_OTHER_MEAN if mean else _OTHER_STD,)
        if len(value) not in (1, channels):
            raise ValueError(
                f"{len(value)} numbers were given; allowed: one, or one for each of the {channels} channels"
            )
        if not mean and min(value) <= 0:
            raise ValueError(f"{list(value)} was given; allowed: numbers above 0")
        return value * channels if len(value) == 1 else value
