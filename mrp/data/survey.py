"""One look at every image of a source before some are held out: its content, its size, whether it is an image."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mrp import progress
from mrp.data.decode import decode
from mrp.data.order import Ints
from mrp.data.shardtool.statistics import moments, sums_of
from mrp.data.source import DecodeError, Partial, RawImage, Source, UnfitError

_AT_ONCE = 256  # images that are read before they are decoded
_MEASURED = 2000  # images whose pixels are measured


@dataclass
class Survey:
    """What was found of each image, in the order of the source."""

    digests: NDArray[np.uint64]  # of its content: equal for copies of one image
    shapes: Ints  # images, (height, width)
    damaged: dict[int, str] = field(default_factory=dict)  # which images cannot be decoded, and why
    mean: tuple[float, ...] = ()  # of pixels in [0, 1], over some images from all over the source
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, source: Source, channels: int, cores: int) -> Survey:
        """Reads and decodes every image once, in as many threads as there are cores."""
        found = cls(np.zeros(len(source), np.uint64), np.zeros((len(source), 2), np.int64))
        every, sums = -(-len(source) // _MEASURED), np.zeros((3, channels))
        with ThreadPoolExecutor(cores) as threads:
            for start in progress.over(range(0, len(source), _AT_ONCE), f"times {_AT_ONCE} images looked at"):
                numbers = range(start, min(start + _AT_ONCE, len(source)))
                read = [_read(source, number) for number in numbers]
                for number, (data, fault) in zip(numbers, read, strict=True):
                    found.digests[number] = digest_of(data)
                    if fault:
                        found.damaged[number] = fault
                looks = threads.map(lambda data: _look(data, channels), [data for data, _ in read])
                for number, (data, _), look in zip(numbers, read, looks, strict=True):
                    if isinstance(look, str):
                        found.damaged.setdefault(number, look)
                    else:
                        found.shapes[number] = look.shape[1:]
                        present = data.present if isinstance(data, Partial) else 1
                        sums += sums_of(look) * present if number % every == 0 else 0
        # A channel that no image has, or that is the same in all, is zero after normalisation, whatever divides it.
        found.mean, std = moments(np.where(sums[0], sums, [[1.0], [0.0], [1.0]]))
        found.std = tuple(one or 1.0 for one in std)
        return found

    def held_out(self, share: float) -> Ints:
        """Returns which sound images are held out: those whose hashed content lies in the lowest part of all values.

        That follows from an image alone: copies of it stay on its side, and other images that come later move none.
        """
        chosen = self.digests < np.uint64(int(share * 2**64))
        chosen[list(self.damaged)] = False
        return np.flatnonzero(chosen)


def _read(source: Source, number: int) -> tuple[RawImage, str]:
    try:
        return source.read(number)[0], ""
    except OSError as error:
        return b"", f"cannot be read: {error.strerror or error}"
    except DecodeError as error:
        return b"", str(error)


def digest_of(data: RawImage) -> int:
    """Returns 64 bits that follow from the content of an image: its file, or its pixels."""
    data = data.pixels if isinstance(data, Partial) else data
    if not isinstance(data, bytes):
        data = repr((data.shape, str(data.dtype))).encode() + data.tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _look(data: RawImage, channels: int) -> Tensor | str:
    try:
        return decode(data, channels)
    except (DecodeError, UnfitError) as error:
        return str(error)
