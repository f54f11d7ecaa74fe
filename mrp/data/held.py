"""Training images that are decoded once and held in memory: what is held of each, and how it gets there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mrp import progress
from mrp.config import ConfigError
from mrp.data.augment import View, resize
from mrp.data.batches import Batches, EvaluationPlan
from mrp.data.config import Config, Crop, Resize, Size
from mrp.data.decode import UnfitError, decode
from mrp.data.quarantine import Bad, Quarantine
from mrp.data.source import RawImage, Source
from mrp.data.workers import Numbers, received, torch_loader

_AT_ONCE = 256  # samples that a worker decodes before it hands them over
_FEW = 1 << 24  # bytes of pixels up to which workers would take longer to start than the decoding takes
_LABEL, _TAG = 8, 4  # bytes of a label, and of one tag


class Held(NamedTuple):
    """The images of every sample, of one size, and their labels."""

    images: Tensor  # N H W C, uint8, on the device
    labels: Tensor | None  # N, int64, or N tags, float32 (see `known_tags`); on the host

    def to(self, device: torch.device) -> Held:
        """Returns the same with the images on a device."""
        return self._replace(images=self.images.to(device))


def held_size(source: Source, config: Config) -> Size:
    """Returns the size in which images are held, or refuses data that cannot be, by their first image."""
    augment = config.augment
    if source.partial:
        raise ConfigError("samples of data.train may lack channels, which is not known on the device")
    if type(augment) is Resize:
        return config.shape
    coloured = type(augment) is Crop and (augment.jitter or augment.rand is not None)
    if type(augment) is not Crop or coloured or augment.interpolation != "bicubic":
        raise ConfigError(
            "of data.augment, only resize, and bicubic crop without jitter and rand, are known on the device"
        )
    first = Batches(source, _Whole(config, None), EvaluationPlan(0, 1, 1), source.replacement)
    image = first.read(0, [0], []).views[0]
    return image.shape[1], image.shape[2]


@dataclass(frozen=True, slots=True)
class Holding:
    """How the training images of a source are held in memory."""

    source: Source
    config: Config
    size: Size

    @property
    def bytes(self) -> int:
        """Returns the memory that images and labels take."""
        return self._labels_at + (_TAG * len(self.source.tags) or _LABEL) * len(self.source)

    @property
    def _labels_at(self) -> int:
        pixels = len(self.source) * math.prod(self.size) * self.config.num_channels
        return -(-pixels // _LABEL) * _LABEL

    def in_memory(self, memory: Tensor) -> Held:
        """Returns images and labels as they lie in so many bytes."""
        shape = (len(self.source), *self.size, self.config.num_channels)
        images = memory[: math.prod(shape)].view(shape)
        rest = memory[self._labels_at :]
        if self.source.tags:
            return Held(images, rest.view(torch.float32).view(len(self.source), -1))
        return Held(images, rest.view(torch.int64) if self.source.classes else None)

    def decode(
        self, memory: Tensor, quarantine: Quarantine, workers: int, beat: Callable[[], None] = lambda: None
    ) -> None:
        """Decodes every sample into memory; those that are no images are replaced and noted, as in training.

        `beat` is called now and then, since this may take minutes.
        """
        held, count = self.in_memory(memory), len(self.source)
        plan = EvaluationPlan(0, count, _AT_ONCE)
        dataset = Batches(self.source, _Whole(self.config, self.size), plan, self.source.replacement, quarantine.known)
        numbers = Numbers(range(-(-count // _AT_ONCE)))
        workers = workers if self.bytes > _FEW else 0
        batches = received(torch_loader(dataset, numbers, workers, pin_memory=False, persistent=False))
        bad = list[Bad]()
        for number, result in enumerate(progress.over(batches, "decoding", len(numbers))):
            rows = slice(number * _AT_ONCE, min(count, (number + 1) * _AT_ONCE))
            batch, filled = result.batch, rows.stop - rows.start
            held.images[rows] = batch.images.permute(0, 2, 3, 1)[:filled]
            if held.labels is not None:
                held.labels[rows] = batch.labels[:filled]
            bad += result.bad
            beat()
        quarantine.add(bad)


class _Whole(View):
    """Turns an image into what is held of it: what training does to it under every key."""

    def __init__(self, config: Config, size: Size | None) -> None:
        super().__init__(config, train=False)
        self.wanted = size
        self._crops = isinstance(config.frame, Crop)
        self.size = size or self.size

    def decoded(self, data: RawImage, keys: Sequence[int], *, sound: bool = False) -> list[Tensor]:
        """Returns the image once: whole for crops, else resized."""
        image = decode(data, self.channels)
        if image.dtype != torch.uint8:
            raise UnfitError("not of 8 bits, as images that are held in memory have to be")
        if not self._crops:
            return [resize(image, self.size)]
        size = (image.shape[1], image.shape[2])
        if self.wanted not in (None, size):
            raise UnfitError(f"{_text(size)} pixels, and the first image has {_text(self.size)}: crops need one size")
        return [image]


def _text(size: Size) -> str:
    return " x ".join(map(str, size))
