"""Where samples come from: one interface over arrays and folders, and what a run's `data:` section may say."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationInfo, field_validator

from mrp.config import ConfigError, Node, nearest
from mrp.data import cifar
from mrp.data.augment import Augment, Crop, Size
from mrp.data.decode import Pixels

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OTHER_MEAN, _OTHER_STD = 0.5, 0.25


class Config(Node):
    """The `data:` section of a run."""

    train: str
    test: str | None = None
    size: int | tuple[int, int]  # height and width
    channels: int = 3
    mean: tuple[float, ...] = ()  # of pixels in [0, 1]; by default ImageNet's for 3 channels, 0.5 otherwise
    std: tuple[float, ...] = ()  # by default ImageNet's for 3 channels, 0.25 otherwise
    augment: Augment = Crop()
    tail: Literal["drop", "continuous"] = "drop"

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


class Source(Protocol):
    """Samples by number."""

    @property
    def identity(self) -> str:
        """A sha256 of what the data is, whatever place it lies in."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels are called; empty when there are none."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """An image, as the bytes of a file or as pixels (H W C), and its label: -1 when there is none."""

    def where(self, index: int) -> str:
        """What to call a sample in a message."""


def open_source(spec: str, split: Literal["train", "test"]) -> Source:
    """The data that `data.train` or `data.test` names; `split` chooses where one name stands for both."""
    if spec == "digits":
        return _digits(split)
    path = Path(spec).expanduser()
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


@dataclass(frozen=True, slots=True)
class Folder:
    """A tree of image files: the folders at its top are the classes, or there are only files and no labels.

    Names are kept as one piece of memory, so that a worker process gets millions of them in an instant.
    """

    root: str
    names: bytes
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    identity: str

    @classmethod
    def scan(cls, root: Path) -> Folder:
        """Look through the whole tree once; the order of the samples is that of their names."""
        files = sorted((os.fsencode(name), size) for name, size in _files(root, ""))
        if not files:
            raise ConfigError(f"{root}: holds no images; files that count end in {', '.join(EXTENSIONS)}")
        tops = [name.partition(b"/")[0] if b"/" in name else b"" for name, _ in files]
        flat = [name for (name, _), top in zip(files, tops, strict=True) if not top]
        if flat and len(flat) < len(files):
            raise ConfigError(
                f"{root}: holds class folders ('{os.fsdecode(next(filter(None, tops)))}') and also images outside of "
                f"them ('{os.fsdecode(flat[0])}'); move those into a class folder, or away"
            )
        classes = () if flat else tuple(os.fsdecode(top) for top in sorted(set(tops)))
        _check_classes(root, classes)
        numbers = {os.fsencode(name): number for number, name in enumerate(classes)}
        digest = hashlib.sha256(b"".join(b"%b\0%d\n" % file for file in files))
        return cls(
            str(root),
            b"".join(name for name, _ in files),
            np.cumsum([len(name) for name, _ in files], dtype=np.int64),
            np.array([numbers.get(top, -1) for top in tops], np.int32),
            classes,
            digest.hexdigest(),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """The file's bytes and the number of its class."""
        with open(self.where(index), "rb") as file:
            return file.read(), int(self.labels[index])

    def where(self, index: int) -> str:
        """The file's path."""
        start = int(self.ends[index - 1]) if index else 0
        return os.path.join(self.root, os.fsdecode(self.names[start : int(self.ends[index])]))


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """Relative name and size of every image at or below a folder; hidden files and links back up are passed over."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                back = entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve())
                if not back:
                    yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name, entry.stat().st_size


def _check_classes(root: Path, classes: tuple[str, ...]) -> None:
    if classes and {name.lower() for name in classes} <= _SPLITS:
        raise ConfigError(
            f"{root}: its folders ({', '.join(classes)}) are splits, not classes; give {root / classes[0]}"
        )
    if classes:
        empty = sorted({e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")} - set(classes))
        if empty:
            raise ConfigError(f"{root / empty[0]}: a class folder without images; remove it, or put its images there")
