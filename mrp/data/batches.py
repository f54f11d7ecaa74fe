"""One batch from nothing but its number: which samples it holds, and how they are read, decoded and put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from mrp.batch import Batch, in_units
from mrp.config import ConfigError
from mrp.data import turbojpeg
from mrp.data.augment import View
from mrp.data.decode import DecodeError, UnfitError
from mrp.data.mixtures import Mixed
from mrp.data.order import Ints, Order, keys
from mrp.data.quarantine import Bad
from mrp.data.source import Partial, RawImage, Source
from mrp.data.workers import WorkerError

_KINDS = [torch.uint8, torch.uint16, torch.float32]  # of pixels, each of which holds those before it
_TYPES = [np.dtype(kind) for kind in (np.uint8, np.uint16, np.float32)]  # the same
_MOST_KNOWN = 1 << 24  # samples, of one byte of shared memory each; the largest sets are gone through about once


class Rows(NamedTuple):
    """What a batch consists of."""

    samples: Ints
    keys: Ints  # views, samples
    valid: Tensor | None
    step: int
    places: Ints | None = None  # samples


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Micro-step after micro-step."""

    order: Order | Mixed
    places: Ints  # accumulation, micro-batch
    views: int

    def rows(self, number: int) -> Rows:
        """Returns what the micro-batch of this number holds, counted over all steps."""
        step, part = divmod(number, len(self.places))
        slots = self.order.slots(step, self.places[part])
        views = [slots.keys]
        views += [keys(self.order.seed, slots.epochs, slots.samples, view) for view in range(1, self.views)]
        return Rows(slots.samples, np.stack(views), None, step, self.places[part])


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """A slice of the data from its start to its end."""

    start: int
    stop: int
    batch: int

    def rows(self, number: int) -> Rows:
        """Returns what the batch of this number holds; the last one is filled up with rows that are not valid."""
        first = self.start + number * self.batch
        samples = np.arange(first, max(first, min(first + self.batch, self.stop)))
        valid = torch.arange(self.batch) < len(samples)
        return Rows(samples, keys(0, 0, samples)[None], valid, 0)


class Result(NamedTuple):
    """A batch, and those of its samples that turned out to be no images."""

    batch: Batch
    bad: list[Bad]


class Seen(NamedTuple):
    """What a batch gets of a sample."""

    views: list[Tensor]
    label: int
    tags: NDArray[np.int8] | None  # which it has; None where the data have no tags
    present: NDArray[np.bool_] | None  # the channels that it has; None if it has all


class Sound:
    """The samples that were once decoded to their end, in any worker: below a crop they need not be looked at again.

    That holds only while every read is compared with a checksum, and helps only where parts can be decoded.
    """

    def __init__(self, source: Source, view: View) -> None:
        useful = view.train and source.checked and len(source) <= _MOST_KNOWN and turbojpeg.library() is not None
        self._known = torch.zeros(len(source) if useful else 0, dtype=torch.bool).share_memory_()

    def __contains__(self, sample: int) -> bool:
        return sample < len(self._known) and bool(self._known[sample])

    def add(self, sample: int) -> None:
        """Notes that a sample is sound."""
        if sample < len(self._known):
            self._known[sample] = True


class Batches(Dataset[Result | WorkerError]):
    """Batches made from nothing but their number."""

    def __init__(
        self,
        source: Source,
        view: View,
        plan: TrainingPlan | EvaluationPlan,
        replacement: Callable[[int], int | None] | None,
        known_bad: Set[int] = frozenset(),  # samples that need not be tried
    ) -> None:
        self.source, self.view, self.plan = source, view, plan
        self.replacement, self.known_bad = replacement or _no_replacement, known_bad
        self.sound = Sound(source, view)

    def __getitem__(self, number: int) -> Result | WorkerError:
        rows = self.plan.rows(number)
        bad: list[Bad] = []
        try:
            seen = [self.read(*pair, bad) for pair in zip(rows.samples.tolist(), rows.keys.T.tolist(), strict=True)]
        except ConfigError as error:
            return WorkerError(str(error))
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            return WorkerError("machine.workers: there is no memory left to decode images in; take fewer of them")
        count = rows.keys.size if rows.valid is None else len(rows.valid)
        # All samples' first views, then their second ones: neighbours, which may be mixed, are never of one sample.
        images = [each.views[view] for view in range(len(rows.keys)) for each in seen]
        labels = self._labels(seen * len(rows.keys), count)
        present = self._present([each.present for each in seen] * len(rows.keys), count)
        keys_ = _filled(rows.keys.reshape(-1), count)
        places = None if rows.places is None else torch.from_numpy(np.tile(rows.places, len(rows.keys)))
        stacked = stack(images, (count, self.view.channels, *self.view.size))
        return Result(Batch(stacked, keys_, labels, rows.valid, torch.tensor(rows.step), places, present), bad)

    def _labels(self, rows: list[Seen], count: int) -> Tensor | None:
        """Returns the class of each image, or what is known of its tags; None where there are neither."""
        if self.source.classes:
            return _filled([row.label for row in rows], count)
        if not self.source.tags:
            return None
        labels = torch.zeros(count, len(self.source.tags))
        for label, row in zip(labels, rows, strict=False):
            assert row.tags is not None
            label.copy_(known_tags(row.tags))
        return labels

    def _present(self, rows: list[NDArray[np.bool_] | None], count: int) -> Tensor | None:
        """Returns the channels that each image has; None from a source of which no sample lacks any."""
        if not self.source.partial:
            return None
        present = torch.ones(count, self.view.channels, dtype=torch.bool)
        for number, row in enumerate(rows):
            if row is not None:
                present[number] = torch.from_numpy(row)
        return present

    def read(self, sample: int, keys_: list[int], bad: list[Bad]) -> Seen:
        """Returns the sample under each key; one that is intact but no image is replaced by the next good one."""
        candidate, tried = sample, set[int]()
        while candidate not in tried:
            tried.add(candidate)
            following = self.replacement(candidate) if candidate in self.known_bad else None
            if following is None:
                try:
                    data, label = self._checked(self.source.read(candidate))
                    images = self.view.decoded(data, keys_, sound=candidate in self.sound)
                    self.sound.add(candidate)
                    tags = self.source.tags_of(candidate) if self.source.tags else None
                    present = data.present if isinstance(data, Partial) else None
                    return Seen(_apart(images, data), label, tags, present)
                except UnfitError as error:
                    raise ConfigError(f"{self._where(candidate)}: {error}") from None
                except DecodeError as error:
                    fault, following = str(error), self.replacement(candidate)
                except OSError as error:
                    fault = f"cannot be read: {error.strerror or error}"
                if following is None:
                    raise ConfigError(f"{self._where(candidate)}: {fault}; mend it under the same name and run again")
                bad.append(Bad(candidate, self._where(candidate), fault))
            candidate = following
        raise ConfigError(f"{self._where(sample)}: no sample of its shard is an image; remove the shard")

    def _checked(self, read: Any) -> tuple[RawImage, int]:
        """Returns an image and its label, after checking that a source of one's own gives what it must."""
        if not isinstance(read, tuple | list) or len(read) != 2:
            raise UnfitError(f"its source reads a {type(read).__name__}; give an image and its label: (image, label)")
        data, label = read
        pixels = data.pixels if isinstance(data, Partial) else data
        if isinstance(pixels, np.ndarray):
            if pixels.ndim != 3 or pixels.dtype not in _TYPES:
                raise UnfitError(
                    f"its source reads {pixels.dtype} of shape {pixels.shape}; give pixels (height, width, channels) "
                    "of uint8, uint16 or float32"
                )
        elif not isinstance(pixels, bytes | bytearray | memoryview):
            raise UnfitError(
                f"its source reads a {type(pixels).__name__}; give the bytes of an image file, or pixels as an array"
            )
        if classes := len(self.source.classes):
            if not isinstance(label, SupportsIndex):
                raise UnfitError(f"has the label {label!r}, a {type(label).__name__}; give the number of its class")
            if not 0 <= label.__index__() < classes:
                raise UnfitError(
                    f"has the label {label}, and {classes} classes have the labels 0 to {classes - 1}; mend the data, "
                    "or name all classes"
                )
        return data, label

    def _where(self, sample: int) -> str:
        """Returns what to call a sample, also when the file that holds its name cannot be read."""
        try:
            return self.source.where(sample)
        except OSError:
            return f"sample {sample}"


def _apart(images: list[Tensor], data: RawImage) -> list[Tensor]:
    """Returns images that share no memory with the pixels that they come from: a source may read into one array."""
    pixels = data.pixels if isinstance(data, Partial) else data
    if not isinstance(pixels, np.ndarray):
        return images
    return [image.clone() if np.may_share_memory(image.numpy(), pixels) else image for image in images]


def _no_replacement(sample: int) -> None:
    """In evaluation every sample counts."""


def stack(images: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Returns one tensor (B C H W), with zeros after the last image.

    With an image of 16 bits all get 16, and with one of floating-point numbers all get these. In memory it is B H W C,
    as the images are, so that rows are copied and not taken apart into colours; `Prepare` does that, on the device.
    """
    count, channels, height, width = shape
    kind = max((image.dtype for image in images), key=_KINDS.index, default=torch.uint8)
    out = _zeros((count, height, width, channels), kind).permute(0, 3, 1, 2)
    for row, image in zip(out, images, strict=False):
        same = image.dtype == kind
        row.copy_(image if same else image.int() * 257 if kind == torch.uint16 else in_units(image))
    return out


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns zeros; in a worker they lie in shared memory, into which the batch would otherwise be copied whole."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    shared = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(shared).view(shape)


def known_tags(tagged: NDArray[np.int8]) -> Tensor:
    """Returns tags as a loss takes them: 1 where an image has one, 0 where not, NaN where nobody knows."""
    tags = torch.from_numpy(np.asarray(tagged, np.float32))
    return tags.masked_fill(tags < 0, torch.nan)


def _filled(values: Ints | list[int], count: int) -> Tensor:
    out = torch.zeros(count, dtype=torch.int64)
    out[: len(values)] = torch.as_tensor(values)
    return out
