"""Mean and standard deviation of pixels, from sums that can be added up over shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mrp.batch import FULL_SCALE
from mrp.data.decode import DecodeError, UnfitError, decode
from mrp.data.index import Records

SAMPLED = 10_000  # images of a set whose pixels are measured

_NOTHING = 1e-13  # of the mean square: a variance that rounding leaves where all pixels are the same

Sums = NDArray[np.float64]  # rows: number of images, sum of means, sum of mean squares; one column per channel


def measure(images: Iterator[bytes]) -> Sums:
    """Returns the sums over these images as colours; those that cannot be decoded, or are none, are left out."""
    sums = np.zeros((3, 3))
    for data in images:
        try:
            sums += sums_of(decode(data, 3))
        except (DecodeError, UnfitError):
            continue
    return sums


def sums_of(image: Tensor) -> Sums:
    """Returns the sums over one decoded image (C H W)."""
    pixels = image.double().flatten(1) / FULL_SCALE.get(image.dtype, 1.0)
    return np.stack([np.ones(len(pixels)), pixels.mean(1).numpy(), pixels.square().mean(1).numpy()])


def measure_shard(path: Path, records: Records, count: int) -> Sums:
    """Returns the sums over the first images of a shard, which are a random sample where the seed laid them down."""
    with path.open("rb") as file:

        def read(record: Any) -> bytes:
            file.seek(int(record["offset"]))
            return file.read(int(record["size"]))

        return measure(read(record) for record in records[:count])


def moments(sums: Sums) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel; both are empty when no image was measured."""
    if not sums[0, 0]:
        return (), ()
    mean, square = sums[1] / sums[0], sums[2] / sums[0]
    variance = square - mean**2
    std = np.sqrt(np.where(variance > _NOTHING * square, variance, 0))
    return _rounded(mean), _rounded(std)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Returns six digits of each, wherever they begin: floating-point pixels may be very small."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())
