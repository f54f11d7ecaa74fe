"""What can be trained on: images by number, and what the order of training and a run's identity need to know of them.

A kind of source is one file in `mrp/data/sources/`, or a file of a user's own, with `Config` and a subclass `Source`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError
from mrp.data.order import Ints

Pixels = NDArray[np.uint8 | np.uint16 | np.float32]  # H W C
_WHOLE = (np.dtype(np.uint8), np.dtype(np.uint16))
_LISTED, _LONG_NAME = 6, 30  # classes whose names are shown, and letters of each
_MOST_CLASSES = 1 << 20  # without names


def listed(classes: tuple[str, ...]) -> str:
    """Returns the number of classes and what the first of them are called."""
    names = ", ".join(name if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}..." for name in classes[:_LISTED])
    return f"{len(classes):,} ({names}{', ...' if len(classes) > _LISTED else ''})"


class Partial(NamedTuple):
    """The pixels of a sample that lacks some channels; what stands in these does not matter."""

    pixels: Pixels
    present: NDArray[np.bool_]  # one per channel


RawImage = bytes | Pixels | Partial  # the bytes of a file, or pixels


class DecodeError(ValueError):
    """An image that cannot be read: one line that says why."""


class UnfitError(ConfigError):
    """A sound image that does not fit the configuration, and is therefore not replaced by another."""


def one_line(error: object) -> str:
    """Returns what an error of a library says, in one line of a bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def as_pixels(array: NDArray[Any]) -> Pixels:
    """Returns an array (H W C) with numbers of a kind that images have.

    Bytes and unsigned numbers of 16 bits stay as they are, and are later counted from 0 to 1. All others become
    float32 with the same values.
    """
    native = array.dtype.newbyteorder("=")
    if native in _WHOLE:
        return array.astype(native, copy=False)
    if native.kind not in "iuf" or (native.kind in "iu" and native.itemsize > 4):
        raise DecodeError(f"pixels of {native}; save them as uint8, uint16 or float32")
    return array.astype(np.float32)


def class_numbers(where: str, labels: Any, count: int) -> Any:
    """Returns labels, of which no more than the shape is read yet, where there is one whole number per sample."""
    if labels.dtype.kind not in "iu" or math.prod(labels.shape) != count:
        raise ConfigError(
            f"{where}: its labels are {labels.dtype} of shape {labels.shape}, and {count} class numbers are needed"
        )
    return labels


def numbered(where: str, labels: NDArray[Any]) -> tuple[str, ...]:
    """Returns what classes are called that have no names: 0, 1 and so on, up to the largest label."""
    last = int(labels.max())
    if last >= _MOST_CLASSES:
        raise ConfigError(f"{where}: has the label {last}; labels are class numbers from 0: number them anew")
    return tuple(map(str, range(last + 1)))


class Source(ABC):
    """Images by number. A kind of source writes `__len__`, `read` and `identity`; the rest has a default here."""

    classes: tuple[str, ...] = ()  # what the labels are called; empty where there are none
    tags: tuple[str, ...] = ()  # in place of classes: what an image may have, several of them or none
    checked: bool = False  # whether `read` compares each image's bytes with a checksum
    channels: tuple[str, ...] = ()  # what the channels of its pixels are called; empty where they have no names
    left_out: str = ""  # which files beside the images it does not take for images, in words
    lossy_names: bool = False  # whether letters other than a to z may be missing in names, as in old shards
    partial: bool = False  # whether samples may lack channels: then `read` gives a `Partial` of each that does

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns an image, as the bytes of a file or as pixels (H W C), and its label: -1 where there is none.

        An image that is damaged is a `DecodeError` that says why.
        """

    @cached_property
    def identity(self) -> str:
        """A sha256 of what the data are, wherever they are stored: a run that goes on must find the same one."""
        raise ConfigError(f"{_file(type(self))}: its Source has no identity; give it a sha256 of what its data are")

    @cached_property
    def content(self) -> str:
        """What results that are kept are looked up by: it changes whenever any image or label may have changed."""
        return self.identity

    @cached_property
    def labels(self) -> NDArray[Any]:
        """The label of every sample."""
        if self.classes:
            raise ConfigError(f"{_file(type(self))}: its Source has classes and no labels; give it both, or neither")
        return np.broadcast_to(np.int64(-1), len(self))

    @cached_property
    def tagged(self) -> NDArray[np.int8]:
        """Which tags every sample has (N tags): 1 has it, 0 has it not, -1 nobody knows."""
        if self.tags:
            raise ConfigError(f"{_file(type(self))}: its Source has tags and no tagged; give it both, or neither")
        return np.empty((len(self), 0), np.int8)

    def tags_of(self, index: int) -> NDArray[np.int8]:
        """Returns which tags a sample has: its row of `tagged`."""
        row: NDArray[np.int8] = self.tagged[index]
        return row

    @cached_property
    def shard_sizes(self) -> Ints:
        """How many samples each shard holds; empty where any two samples can be read together equally well."""
        return np.empty(0, np.int64)

    def where(self, index: int) -> str:
        """Returns what to call a sample in a message."""
        return f"{_file(type(self))}: sample {index}"

    def name_of(self, index: int) -> str:
        """Returns what a sample is called within its source, where groups are found by names (`data.group`)."""
        return self.where(index)

    def replacement(self, index: int) -> int | None:
        """Returns the sample to show where this one is intact but no image; None where the user should mend it."""
        return None

    def fetch(self, shard: int) -> None:
        """Bring a shard to this node, if it is on a server."""
        return

    def __reduce__(self) -> Any:
        """A worker process knows nothing of a user's own file: it is loaded there before the source is rebuilt."""
        return _empty, (type(self).__module__, _file(type(self)), type(self).__name__), self.__getstate__()


def _file(kind: type) -> str:
    return getattr(sys.modules[kind.__module__], "__file__", None) or "an interactive session"


def _empty(module: str, file: str, name: str) -> Source:
    from mrp.data.sources import SOURCES

    loaded = sys.modules.get(module)
    if loaded is None:
        loaded = importlib.import_module(module) if importlib.util.find_spec(module) else SOURCES.find(file)
    kind: type[Source] = getattr(loaded, name)
    return object.__new__(kind)


class Derived(Source):
    """Samples of other sources: it is known by them, and by what is made of them."""

    @property
    def made_of(self) -> tuple[Source, ...]:
        """The other sources."""
        one = getattr(self, "source", None)
        return getattr(self, "sources", () if one is None else (one,))

    @cached_property
    def identity(self) -> str:
        """A sha256 of the other sources' identities, and of what is made of them."""
        return self._known_by(lambda source: source.identity)

    @cached_property
    def content(self) -> str:
        """A sha256 of the other sources' contents, and of what is made of them."""
        return self._known_by(lambda source: source.content)

    def where(self, index: int) -> str:
        """Returns what its source calls it."""
        source, inside = self._find(index)
        return source.where(inside)

    def name_of(self, index: int) -> str:
        """Returns what its source calls it there."""
        source, inside = self._find(index)
        return source.name_of(inside)

    def tags_of(self, index: int) -> NDArray[np.int8]:
        """Returns which tags its source says that it has."""
        source, inside = self._find(index)
        return source.tags_of(inside)

    @abstractmethod
    def _find(self, index: int) -> tuple[Source, int]:
        """Returns the source of a sample, and its number there."""

    @abstractmethod
    def _known_by(self, what: Callable[[Source], str]) -> str:
        """Returns a sha256 of what the other sources are known by, and of what is made of them."""


class Named(Source):
    """No images, only what classes are called: in place of training data that are not at hand."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.labels = np.empty(0, np.int64)

    @cached_property
    def identity(self) -> str:
        """A sha256 of the names."""
        return hashlib.sha256("\n".join(self.classes).encode()).hexdigest()

    def __len__(self) -> int:
        return 0

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Fails, for there is no image."""
        raise IndexError(index)


class Arrays(Source):
    """Labelled images that fit in memory."""

    def __init__(self, name: str, images: Pixels, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
        self.name, self.images, self.labels, self.classes = name, images, labels, classes  # images: N H W C

    @cached_property
    def identity(self) -> str:
        """A sha256 of classes, pixels and labels."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes | Pixels, int]:
        """Returns the pixels and the label."""
        return self.images[index], int(self.labels[index])

    def where(self, index: int) -> str:
        """Returns the name of the data and the number of the image."""
        return f"{self.name}: image {index}"
