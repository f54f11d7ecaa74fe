"""An object of Python that gives images by number, such as a dataset of torchvision or an array."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrp import progress
from mrp.config import ConfigError, Node
from mrp.data import source
from mrp.data.handed import OBJECTS
from mrp.data.source import DecodeError, Partial, RawImage, UnfitError, as_pixels, class_numbers, numbered, one_line
from mrp.data.storage.cache import Cache

_LOOKED_AT = 256  # images from which the identity follows, beside their number and the labels
_TWICE = 8  # of these, which are asked for again
_DEEPEST = 0xFFFF  # of Pillow's whole numbers, which it would cut off there
_REMEDY = "give an image of Pillow, an array (H W C), a tensor (C H W), or the bytes of a file"


class Config(Node):
    """An object that was given from Python: `mrp.pretrain(recipe, data=OBJECT)`."""

    name: Literal["python"] = "python"
    object: str  # the name of the object while the Python process lives


class Source(source.Source):
    """Anything with `__len__` and `__getitem__`, whose items are images, or pairs of an image and a label.

    The identity is what the object says by `identity`, or follows from its length, labels and a sample of its images.
    """

    def __new__(cls, config: Config, split: Literal["train", "test"], cache: Cache) -> Any:
        """Returns a source of mrp's own kind as it is."""
        own = OBJECTS.get(config.object)
        return own if isinstance(own, source.Source) else super().__new__(cls)

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        if config.object not in OBJECTS:
            raise ConfigError(
                f"data.{split}: was an object of Python ({config.object}), which is not here; give it again from "
                f"Python (data=OBJECT), or other data by data.{split}=PATH"
            )
        self._name, self._sent = config.object, b""
        self._data: Any = OBJECTS[config.object]  # None in a worker process, until it is needed there
        self._length = len(self._data)
        if not self._length:
            raise ConfigError(f"data.{split}: the object {self._name} holds no samples; give it some")
        self.partial = bool(getattr(self._data, "partial", False))
        labels = getattr(self._data, "labels", getattr(self._data, "targets", None))
        _, label = self._item(0)  # an object that gives no images is refused here
        if labels is not None:
            self.labels = class_numbers(self._name, np.asarray(labels), self._length).reshape(-1).astype(np.int64)
            given = getattr(self._data, "classes", None)
            named = () if given is None else tuple(map(str, given))
            self.classes = named or numbered(self._name, self.labels)
            self._compare(self.labels)
        elif label is not None:
            progress.say(f"{self._name}: has no attribute 'labels' or 'targets', so its labels are not used")

    def _compare(self, labels: Any) -> None:
        """Refuses a list of labels that some items contradict, as where the object changes labels on their way."""
        for number in np.unique(np.linspace(0, self._length - 1, _TWICE, dtype=np.int64)).tolist():
            said = np.asarray(self._item(number)[1])
            if said.ndim == 0 and said.dtype.kind in "iu" and said != labels[number]:
                raise ConfigError(
                    f"{self.where(number)}: comes with the label {said}, and the object's list of labels says "
                    f"{labels[number]}; let both say the same"
                )

    def __len__(self) -> int:
        return self._length

    def read(self, index: int) -> tuple[RawImage, int]:
        """Returns the image, and its label where the object lists the labels."""
        return self._item(index)[0], int(self.labels[index])

    def _item(self, index: int) -> tuple[RawImage, Any]:
        data = self._data = self._arrived() if self._data is None else self._data
        item: Any = data[index]
        label: Any = None
        if isinstance(item, Mapping):
            item, label = item.get("image"), item.get("label")
        elif isinstance(item, tuple | list) and len(item) == 2 and not isinstance(item, Partial):
            item, label = item
        image = _image(item, self.where(index))
        if isinstance(image, Partial) and not self.partial:
            raise UnfitError(f"{self.where(index)}: lacks channels; let the object have an attribute partial = True")
        return image, label

    @cached_property
    def identity(self) -> str:
        """What the object says, or a sha256 of its length, labels, names of classes, and up to 256 of its images."""
        said = getattr(self._data, "identity", None)
        if said is not None:
            return str(said)
        digest = hashlib.sha256(f"{self._length} {self.classes}\n".encode())
        if self.classes:
            digest.update(self.labels.astype("<i8").tobytes())
        numbers = np.unique(np.linspace(0, self._length - 1, _LOOKED_AT, dtype=np.int64)).tolist()
        for place, number in enumerate(progress.over(numbers, f"images of {self._name}")):
            image = _content(self._item(number)[0])
            if place < _TWICE and image != _content(self._item(number)[0]):
                raise ConfigError(
                    f"{self.where(number)}: is another image each time; leave out what is random in the object: "
                    "data.augment changes images"
                )
            digest.update(image)
        known_by = f"its length, labels and {len(numbers)} of its images"
        progress.say(f"{self._name}: says no identity, so this run knows it by {known_by}")
        return digest.hexdigest()

    def where(self, index: int) -> str:
        """Returns the object and the number of the sample."""
        return f"{self._name}: sample {index}"

    def __getstate__(self) -> dict[str, Any]:
        """Sends the object pickled, so that what prevents that is one line."""
        try:
            sent = self._sent or pickle.dumps(self._data)
        except Exception as error:  # an object may raise anything
            raise ConfigError(
                f"{self._name}: cannot be sent to worker processes ({one_line(error)}); let it open files "
                "when they are read, or set machine.workers=0"
            ) from None
        return self.__dict__ | {"_data": None, "_sent": sent}

    def _arrived(self) -> Any:
        try:
            return pickle.loads(self._sent)  # noqa: S301 -- written by the training process
        except (AttributeError, ImportError) as error:
            raise ConfigError(
                f"{self._name}: is not known in worker processes ({one_line(error)}); define its class in "
                "a file that is imported, or set machine.workers=0"
            ) from None


def _image(value: Any, where: str) -> RawImage:
    """Returns an image as sources give it."""
    if isinstance(value, Partial | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image):
        numbers = np.asarray(value) if value.mode == "I" else np.zeros(1)
        if numbers.size and (numbers.min() < 0 or numbers.max() > _DEEPEST):
            beyond = f"has numbers from {numbers.min()} to {numbers.max()}, beyond 16 bits"
            raise UnfitError(f"{where}: {beyond}; give an array of float32")
        value = np.array(value.convert(_mode(value.mode)))
    elif isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        value = (value.permute(1, 2, 0) if value.ndim == 3 else value).numpy()
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3):
        shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
        raise UnfitError(f"{where}: is a {type(value).__name__}{shape}; {_REMEDY}")
    try:
        return as_pixels(np.ascontiguousarray(value[..., None] if value.ndim == 2 else value))
    except DecodeError as error:
        raise UnfitError(f"{where}: {error}") from None


def _mode(mode: str) -> str:
    """Returns the mode of Pillow in which pixels are taken: colours, grey, or numbers of 16 bits or floating-point."""
    if mode in ("1", "L", "LA", "La"):
        return "L"
    return mode if mode == "F" or mode.startswith("I;16") else "RGB" if not mode.startswith("I") else "I;16"


def _content(image: RawImage) -> bytes:
    if isinstance(image, bytes):
        return image
    pixels, present = image if isinstance(image, Partial) else (image, np.ones(0, bool))
    return f"{pixels.shape} {pixels.dtype}\n".encode() + pixels.tobytes() + present.tobytes()
