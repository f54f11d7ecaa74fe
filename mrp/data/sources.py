"""Where samples come from: one interface over arrays and folders, and what a run's `data:` section may say."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from mrp.config import ConfigError, Node, nearest
from mrp.data import cifar
from mrp.data.augment import Augment, Crop, Size
from mrp.data.cache import Cache, Prefetch
from mrp.data.cache import Config as CacheConfig
from mrp.data.decode import Pixels
from mrp.data.folders import Folder
from mrp.data.manifest import MANIFEST
from mrp.data.order import Ints
from mrp.data.sharded import Shards

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OTHER_MEAN, _OTHER_STD = 0.5, 0.25


class Part(Node):
    """One of several sources that are mixed."""

    source: str
    weight: float = Field(gt=0)  # the share of each batch is in proportion
    classes: str | None = None
    fraction: float | None = Field(None, gt=0, le=1)


class Config(Node):
    """The `data:` section of a run."""

    train: str | tuple[Part, ...]
    test: str | None = None
    classes: str | None = None  # only these: a file with one name a line, or a list that comes with mrp
    fraction: float | None = Field(None, gt=0, le=1)  # of the training samples of each class
    size: int | tuple[int, int]  # height and width
    channels: int = 3
    mean: tuple[float, ...] = ()  # of pixels in [0, 1]; by default ImageNet's for 3 channels, 0.5 otherwise
    std: tuple[float, ...] = ()  # by default ImageNet's for 3 channels, 0.25 otherwise
    augment: Augment = Crop()
    views: int = Field(1, ge=1)  # images that a batch holds of each sample, from one decode
    tail: Literal["drop", "continuous"] = "drop"
    lanes: int = Field(1, ge=1)  # a multiple of the nodes, where each should fetch only its part of remote shards
    window: int = Field(16, ge=1)  # shards of a lane that are shuffled together
    damaged: int = Field(100, ge=0)  # samples that may turn out to be no images before the run stops

    @property
    def shape(self) -> Size:
        """Height and width of every image."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @field_validator("size", "channels")
    @classmethod
    def _check_positive(cls, value: int | Size) -> int | Size:
        if np.min(value) < 1:
            raise ValueError(f"{value} was given; allowed: numbers from 1")
        return value

    @field_validator("train")
    @classmethod
    def _some(cls, value: str | tuple[Part, ...]) -> str | tuple[Part, ...]:
        if value == ():
            raise ValueError("nothing was given; allowed: a place, or a list of sources with weights")
        return value

    @field_validator("augment")
    @classmethod
    def _check_colours(cls, value: Augment, info: ValidationInfo) -> Augment:
        channels = info.data.get("channels", 3)
        if channels not in (1, 3) and isinstance(value, Crop) and (value.jitter or value.rand):
            raise ValueError(f"jitter and rand are for 1 or 3 channels, and there are {channels}; leave them out")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _accept_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("mean", "std")
    @classmethod
    def _one_a_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("channels", len(value))
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


class Samples(Protocol):
    """Images by number: all that evaluation needs."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels are called; empty when there are none."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """An image, as the bytes of a file or as pixels (H W C), and its label: -1 when there is none."""

    def where(self, index: int) -> str:
        """What to call a sample in a message."""


class Source(Samples, Protocol):
    """What can be trained on."""

    @property
    def identity(self) -> str:
        """A sha256 of what the data is, whatever place it lies in."""

    @property
    def labels(self) -> NDArray[Any]:
        """The label of every sample."""

    @property
    def blocks(self) -> Ints:
        """How many samples lie in each shard; empty where none lies nearer to another than to the rest."""

    def neighbour(self, index: int) -> int | None:
        """The sample to show in place of one that is intact but no image; None where it should be mended instead."""

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """Have the thread fetch a shard, if it is far away."""


def open_source(spec: str, split: Literal["train", "test"], cache: Cache | None = None) -> Source:
    """The data that `data.train` or `data.test` names; `split` chooses where one name stands for both."""
    if spec == "digits":
        return _digits(split)
    path = Path(spec).expanduser()
    if "://" in spec or spec.startswith("pipe:") or path.name == MANIFEST or (path / MANIFEST).is_file():
        return Shards(spec, cache or Cache(CacheConfig()))
    if not path.exists():
        named = f"; 'digits' comes with mrp{nearest(spec, ['digits'])}" if os.sep not in spec else ""
        raise ConfigError(
            f"data.{split}: '{spec}' does not exist; give a folder of images or an archive of CIFAR{named}"
        )
    try:
        records = cifar.read(path, split)
        return Folder.scan(path) if records is None else _arrays(str(path), *records)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path}: cannot be read: {error.strerror or error}; mend or remove it"
        ) from None


@dataclass(frozen=True, slots=True)
class Arrays:
    """Labelled images that fit in memory."""

    name: str
    images: Pixels  # N H W C
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    identity: str

    @property
    def blocks(self) -> Ints:
        """Nothing lies nearer than anything else."""
        return np.empty(0, np.int64)

    def neighbour(self, index: int) -> int | None:
        """An array is mended, not replaced."""
        return None

    def prefetch(self, thread: Prefetch, shard: int) -> None:
        """There is nothing to fetch."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The pixels and the label."""
        return self.images[index], int(self.labels[index])

    def where(self, index: int) -> str:
        """The name of the data and the number of the image."""
        return f"{self.name}: image {index}"


def _arrays(name: str, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]) -> Arrays:
    digest = hashlib.sha256("\n".join(classes).encode())
    digest.update(images.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return Arrays(name, images, labels, classes, digest.hexdigest())


def _digits(split: str) -> Arrays:
    """Scikit-learn's 1797 handwritten digits of 8 x 8; every fifth of each class is for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    by_class = np.argsort(labels, kind="stable")
    fifth = np.arange(len(labels)) % 5 == 0
    chosen = np.sort(by_class[fifth if split == "test" else ~fifth])
    images = np.round(pixels[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return _arrays(f"digits ({split})", images, labels[chosen].astype(np.int64), tuple("0123456789"))
