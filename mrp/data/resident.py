"""Batches of images that are held on the device: taken by number, cropped, resized and mirrored there, many at once.

Samples, keys, crops, flips and pixels are, bit for bit, those of `mrp.data.loader`, which reads and decodes each image
anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrp.batch import Batch
from mrp.data.augment import interpolate, uniforms_of
from mrp.data.batches import TrainingPlan
from mrp.data.config import Config, Crop, Size
from mrp.data.held import Held
from mrp.data.loader import divided
from mrp.data.mixtures import Mixed
from mrp.data.order import Ints, Order

_AT_ONCE = 1 << 24  # pixels that are cropped and resized together: the next ones take the same memory
_MOST = 1 << 15  # of a weight, as torch rounds those by which it resizes images of 8 bits


class ResidentLoader:
    """One rank's share of the global batches, as `Loader` gives it."""

    def __init__(
        self, held: Held, order: Order | Mixed, config: Config, *, group: int, micro_batch: int, rank: int, world: int
    ) -> None:
        places = divided(order, config.views, group, micro_batch, rank, world)
        self.accumulation = len(places)
        self._held, self._plan, self._config = held, TrainingPlan(order, places, config.views), config

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yields the micro-batches of each optimizer step."""
        for step in range(start, stop):
            yield [self._batch(step * self.accumulation + part) for part in range(self.accumulation)]

    def micro_batches(self) -> Generator[Batch]:
        """Yields micro-batches one by one without end: for measuring how fast they come."""
        for number in itertools.count():
            yield self._batch(number)

    def close(self) -> None:
        """Does nothing: there are no processes to end."""

    def _batch(self, number: int) -> Batch:
        rows = self._plan.rows(number)
        views, keys = len(rows.keys), rows.keys.reshape(-1)
        samples = np.tile(rows.samples, views)
        labels, places = self._held.labels, rows.places
        assert places is not None, "of a training plan"
        return Batch(
            seen(self._held.images, samples, keys, self._config),
            there(keys, self._held.images.device),
            None if labels is None else there(labels.numpy()[samples], self._held.images.device),
            None,
            there(np.array(rows.step), self._held.images.device),
            there(np.tile(places, views), self._held.images.device),
        )


def there(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Returns an array as a tensor on the device, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def seen(images: Tensor, samples: Ints, keys: Ints, config: Config) -> Tensor:
    """Returns some of the images (N H W C) as training sees them under their keys (B C H W)."""
    height, width = images.shape[1:3]
    draws = uniforms_of(keys.astype(np.uint64)[:, None])
    parts, at_once = list[Tensor](), max(1, _AT_ONCE // math.prod(images.shape[1:]))
    if isinstance(config.augment, Crop):
        boxes = crop_boxes((height, width), config.augment, draws[:, 1:])
        for start in range(0, len(samples), at_once):
            part = slice(start, start + at_once)
            parts += [cropped(images, samples[part], boxes[part], config.shape)]
    out = torch.cat(parts) if parts else images[there(samples, images.device)]
    if config.mirrors:
        mirrored = there(draws[:, 0] < 0.5, images.device)
        out = torch.where(mirrored[:, None, None, None], out.flip(2), out)
    return out.permute(0, 3, 1, 2)


def crop_boxes(size: Size, crop: Crop, draws: NDArray[np.float64]) -> Ints:
    """Returns top, left, height and width of random crops, as `augment.crop_box` does for one."""
    height, width = size
    low, high = (math.log(ratio) for ratio in crop.ratio)
    h, w = min(height, round(width / crop.ratio[0])), min(width, round(height * crop.ratio[1]))
    boxes = np.tile([(height - h) // 2, (width - w) // 2, h, w], (len(draws), 1))
    pending = np.arange(len(draws))
    for attempt in range(0, draws.shape[1], 4):
        share, shape, down, right = draws[pending, attempt : attempt + 4].T
        area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * share)
        # By the function that the other path calls: numpy's own may differ from it in the last bit.
        ratio = np.array([math.exp(exponent) for exponent in (low + (high - low) * shape).tolist()])
        drawn = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)]).round().astype(np.int64)
        fits = ((drawn > 0) & (drawn <= np.array([[height], [width]]))).all(0)
        (h, w), down, right = drawn[:, fits], down[fits], right[fits]
        top, left = (down * (height - h + 1)).astype(np.int64), (right * (width - w + 1)).astype(np.int64)
        boxes[pending[fits]] = np.stack([top, left, h, w], axis=1)
        pending = pending[~fits]
        if not len(pending):
            break
    return boxes


def cropped(images: Tensor, samples: Ints, boxes: Ints, size: Size) -> Tensor:
    """Returns the boxes of some images, resized to one size (B H W C), as `augment.resize` resizes each of them."""
    device, (top, left, heights, widths) = images.device, boxes.T
    rows = np.minimum(top[:, None] + np.arange(heights.max()), images.shape[1] - 1)
    columns = np.minimum(left[:, None] + np.arange(widths.max()), images.shape[2] - 1)
    # Each box in the upper left corner of its image; what lies beyond it is never looked at.
    pixels = images[
        there(samples[:, None, None], device), there(rows[:, :, None], device), there(columns[:, None], device)
    ]
    stretched = stretched_by_torch if device.type == "cpu" else stretched_by_weights
    return stretched(stretched(pixels, widths, size[1], 2), heights, size[0], 1)


def stretched_by_torch(pixels: Tensor, extents: Ints, length: int, axis: int) -> Tensor:
    """Returns images whose first pixels along an axis, as many as each one's extent, are resized to a length.

    Those of one extent go through torch's own function together, which takes images of 8 bits on a CPU alone.
    """
    shape = list(pixels.shape)
    shape[axis] = length
    out = pixels.new_empty(shape)
    for extent in np.unique(extents).tolist():
        chosen = torch.from_numpy(np.flatnonzero(extents == extent))
        part = pixels[chosen].narrow(axis, 0, extent).permute(0, 3, 1, 2)
        out[chosen] = interpolate(part, (shape[1], shape[2])).permute(0, 2, 3, 1)
    return out


def stretched_by_weights(pixels: Tensor, extents: Ints, length: int, axis: int) -> Tensor:
    """Returns the same by torch's own weights: as they are integers, every device adds up the same sums."""
    distinct, which = np.unique(extents, return_inverse=True)
    bands = [band(extent, length) for extent in distinct.tolist()]
    taps = max(each.weights.shape[1] for each in bands)
    weights = np.stack([np.pad(each.weights, ((0, 0), (0, taps - each.weights.shape[1]))) for each in bands])
    first, bits = np.stack([each.first for each in bands]), np.array([each.bits for each in bands], np.int32)
    chosen = there(which, pixels.device)
    at, shares, shift = (there(table, pixels.device)[chosen] for table in (first, weights, bits))
    lines, shift = pixels.movedim(axis, 1).flatten(2), shift[:, None, None]
    sums = (1 << shift) >> 1  # a half, which rounds
    for tap in range(taps):
        pixel = (at + tap).clamp(max=lines.shape[1] - 1)  # what lies beyond has the weight 0
        sums = sums + lines.gather(1, pixel[:, :, None].expand(-1, -1, lines.shape[2])) * shares[:, :, tap, None]
    out: Tensor = (sums >> shift).clamp(0, 255).byte()
    return out.view(*out.shape[:2], *pixels.movedim(axis, 1).shape[2:]).movedim(1, axis)


class Band(NamedTuple):
    """What resizes a line: for each new pixel the first old one that counts, and the weights from there on."""

    first: Ints  # length
    weights: NDArray[np.int32]  # length, as many as count
    bits: int  # the weights of a pixel add up to about 2^bits


@lru_cache(1024)
def band(extent: int, length: int) -> Band:
    """Returns the weights of antialiased bicubic resizing of a line of `extent` pixels.

    They are what torch takes for images of 8 bits: Keys' kernel with a = -0.5, stretched where the image gets smaller,
    over its sum, in as many bits as leave the largest weight below 2^15.
    """
    scale = extent / length
    stretch = max(scale, 1.0)
    reach = 2 * stretch
    centres = scale * (np.arange(length) + 0.5)
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    stops = np.minimum((centres + reach + 0.5).astype(np.int64), extent)
    pixel = first[:, None] + np.arange((stops - first).max())
    x = np.abs((pixel - centres[:, None] + 0.5) * (1 / stretch))
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0)) * (pixel < stops[:, None])
    weights = kernel / kernel.sum(1, keepdims=True)
    bits = next(bits for bits in range(22, -1, -1) if bits == 0 or int(0.5 + weights.max() * 2**bits) < _MOST)
    return Band(first, np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int32), bits)
