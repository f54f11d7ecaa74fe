"""Whether floating-point pixels are in the units of a recipe's mean and deviation, and not 0 to 255 for 0 to 1."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from mrp.data.config import Config
from mrp.data.source import Derived, Partial, Source

_FAR = 10.0  # standard deviations, which are far more than half of the pixels of an image lie from the mean


def units_warning(source: Source, data: Config) -> str | None:
    """Returns a warning if most pixels of the first image are far from `data.mean`, as in other units.

    Pixels of 8 and 16 bits always count from 0 to 1. Nothing is read of shards, which may be far away, nor of a source
    outside mrp, which may open at its first reading what cannot be sent to a worker.
    """
    with suppress(Exception):  # whatever is wrong with the image, the training will meet it
        if len(source.shard_sizes) or not _is_own(source):
            return None
        content, _ = source.read(0)
        pixels = content.pixels if isinstance(content, Partial) else content
        if isinstance(pixels, np.ndarray) and pixels.dtype.kind == "f" and pixels.shape[2] == len(data.mean):
            known = pixels[np.isfinite(pixels).all(axis=2)]
            distances = np.abs(known - np.array(data.mean)) / np.array(data.std)
            if known.size and np.median(distances) > _FAR:
                return (
                    f"warning: data.train: the first image has pixels from {known.min():.4g} to {known.max():.4g}, "
                    f"most of them over {_FAR:g} standard deviations from data.mean; give data.mean and data.std in "
                    "their units ('mrp doctor' measures them)"
                )
    return None


def _is_own(source: Source) -> bool:
    """Returns whether a source, and those that it is made of, are of mrp's own kinds."""
    inside = source.made_of if isinstance(source, Derived) else ()
    return type(source).__module__.startswith("mrp.data.") and all(map(_is_own, inside))
