"""Images that lie in one array: a .npy or .npz of numpy's, an HDF5 file (h5py), or a folder of zarr's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrp.config import ConfigError, Node, nearest
from mrp.data import source, tree
from mrp.data.arrayfiles import arrays_in, check_pieces, whole
from mrp.data.decode import check_size
from mrp.data.source import DecodeError, Partial, Pixels, RawImage, as_pixels, class_numbers, numbered, one_line
from mrp.data.storage.cache import Cache

_ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".zarr")
_LOOKED_AT = 64 << 20  # bytes of pixels from which the identity follows, beside shape and labels
_MOST_LOOKED_AT = 1024  # images


class Config(Node):
    """An array of images (count, height, width, channels), or without channels."""

    name: Literal["arrays"] = "arrays"
    path: str  # a file that ends in .npy, .npz, .h5 or .hdf5, or a folder in zarr's format
    # The name of the array of images in the file; by default `images`, or the only array of 3 or 4 axes.
    images: str | None = None
    # The name of the array of class numbers, in the file or of a .npy beside it; by default `labels` in the file, or
    # NAME_labels.npy beside NAME.npy, where there is one.
    labels: str | None = None
    classes: tuple[str, ...] = ()  # the names of the classes; by default 0, 1 and so on
    axes: Literal["nhwc", "nchw"] = "nhwc"  # whether channels are the last axis (nhwc) or the second one (nchw)
    channels: tuple[str, ...] = ()  # the names of the channels; by default `data.channels`
    # The name of an array of bools (count, channels), in the file or of a .npy beside it: which channels each image
    # has.
    present: str | None = None


def recognise(text: str) -> Config | None:
    """Returns a configuration if `data.train` names this kind of source."""
    path = Path(text).expanduser()
    return Config(path=text) if path.suffix.lower() in _ENDINGS and path.exists() else None


class Source(source.Source):
    """The images of one array, each of which is read when it is asked for.

    The identity follows from the values, however they are stored: from shape, kind of numbers, all labels, and the
    pixels of up to 1,024 images and 64 MiB, evenly spaced. The content also covers sizes and times of change.
    """

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        self.path, self._axes = str(Path(config.path).expanduser()), config.axes
        self._opened: tuple[int, Any] | None = None  # by which process, and the array
        arrays = arrays_in(Path(self.path))
        self._name = _name_of_images(self.path, config.images, arrays)
        shape = arrays[self._name].shape
        if len(shape) not in (3, 4) or 0 in shape:
            raise ConfigError(f"{self._called()}: is of shape {shape}; (count, height, width[, channels]) is needed")
        try:
            height, width = shape[2:4] if len(shape) == 4 and self._axes == "nchw" else shape[1:3]
            check_size(width, height)
            as_pixels(np.empty(0, arrays[self._name].dtype))
        except DecodeError as error:
            raise ConfigError(f"{self._called()}: {error}") from None
        check_pieces(self._called(), arrays[self._name])
        self._shape: tuple[int, ...] = tuple(shape)
        self.channels, self._present = config.channels, None
        if config.channels and len(config.channels) != self._num_channels:
            raise ConfigError(
                f"{self._called()}: has {self._num_channels} channels, and 'channels' names {len(config.channels)}"
            )
        if config.present is not None:
            self._present = self._checked_present(_beside(Path(self.path), config.present, arrays, "present"))
            self.partial = True
        labels = _labels(Path(self.path), config.labels, arrays)
        if labels is not None:
            self.labels = self._checked(labels, config.classes)
            self.classes = config.classes or numbered(self.path, self.labels)

    def _checked(self, labels: Any, classes: tuple[str, ...]) -> NDArray[np.int64]:
        labels = class_numbers(self.path, labels, len(self))
        labels = whole(f"{self.path}: its labels", labels, np.int64).reshape(-1)
        if labels.min() < 0 or (classes and labels.max() >= len(classes)):
            raise ConfigError(
                f"{self.path}: its labels go from {labels.min()} to {labels.max()}; they count from 0, and 'classes' "
                "names all of them or none"
            )
        return labels  # type: ignore[no-any-return]

    def _checked_present(self, given: Any) -> NDArray[np.bool_]:
        shape = (len(self), self._num_channels)
        if given.shape == shape and given.dtype.kind in "biu":
            present = whole(f"{self.path}: its array of present channels", given, np.bool_)
            if present.any(1).all():
                return present
        raise ConfigError(
            f"{self.path}: its array of present channels is {given.dtype} of shape {given.shape}; bools of shape "
            f"{shape} are needed, with one True at least in each row"
        )

    @property
    def _num_channels(self) -> int:
        return 1 if len(self._shape) == 3 else self._shape[1 if self._axes == "nchw" else 3]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # each process opens the file itself

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns the pixels, which say so where a channel is missing, and the label where there is one."""
        pixels, label = self._pixels(index), int(self.labels[index])
        if self._present is None or self._present[index].all():
            return pixels, label
        return Partial(pixels, self._present[index]), label

    def _pixels(self, index: int) -> Pixels:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), arrays_in(Path(self.path))[self._name]
        array = self._opened[1]
        if array.shape != self._shape:
            raise DecodeError(f"the array is of shape {array.shape} now, and was of {self._shape}")
        try:
            image = np.asarray(array[index])
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever the library raises on a damaged file
            raise DecodeError(f"damaged: {one_line(error)}") from None
        image = image[..., None] if image.ndim == 2 else image.transpose(1, 2, 0) if self._axes == "nchw" else image
        return as_pixels(image)

    @cached_property
    def identity(self) -> str:
        """A sha256 of shape, labels, names of classes, and a bounded sample of the pixels."""
        first = self._pixels(0)
        count = max(2, min(_MOST_LOOKED_AT, _LOOKED_AT // max(1, first.nbytes)))
        digest = hashlib.sha256(f"{len(self)} {first.shape} {first.dtype} {self.classes} {self.channels}\n".encode())
        for index in np.unique(np.linspace(0, len(self) - 1, count, dtype=np.int64)).tolist():
            digest.update(np.ascontiguousarray(self._pixels(index)).tobytes())
        if self._present is not None:
            digest.update(self._present.tobytes())
        if self.classes:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def content(self) -> str:
        """A sha256 of the identity, and of what the file system says of the files."""
        path = Path(self.path)
        inside = sorted(tree.files(path, "", ("",)) if path.is_dir() else [tree.File.at(path, "")])
        return hashlib.sha256(f"{self.identity} {tree.content(inside)}".encode()).hexdigest()

    def where(self, index: int) -> str:
        """Returns the file, the array, and the number of the image."""
        return f"{self._called()}: image {index}"

    def _called(self) -> str:
        return f"{self.path}: {self._name}" if self._name else self.path


def _name_of_images(path: str, given: str | None, arrays: Mapping[str, Any]) -> str:
    if arrays.keys() == {""} and given is None:
        return ""
    if given is not None or "images" in arrays:
        return _known(path, given or "images", arrays)
    fitting = [name for name, array in arrays.items() if len(array.shape) in (3, 4)]
    if len(fitting) != 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "no array"
        raise ConfigError(f"{path}: holds {found}; say by 'images: NAME' which one holds the images")
    return fitting[0]


def _known(path: str, name: str, arrays: Mapping[str, Any]) -> str:
    if name not in arrays:
        raise ConfigError(f"{path}: has no array '{name}'{nearest(name, arrays)}; it has {', '.join(arrays) or 'none'}")
    return name


def _labels(path: Path, given: str | None, arrays: Mapping[str, Any]) -> Any:
    usual = f"{path.stem}_labels.npy"
    if given is None and "labels" not in arrays and not (path.suffix == ".npy" and (path.parent / usual).is_file()):
        return None
    return _beside(path, given or ("labels" if "labels" in arrays else usual), arrays, "labels")


def _beside(path: Path, name: str, arrays: Mapping[str, Any], what: str) -> Any:
    """Returns an array of the file, or one that lies beside it, of which no more than the shape is read yet."""
    if name in arrays:
        return arrays[name]
    other = path.parent / name
    if other.suffix == ".npy" and other.is_file():
        return arrays_in(other)[""]
    raise ConfigError(f"{path}: has no array '{name}' for its {what}{nearest(name, arrays)}, nor is there {other}")
