"""Miniature data of dense tasks: images whose brightness tells what their pixels are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

PIXELS = 24  # of an image's side; the model has 4 x 4 patches


def blocks(count: int, seed: int) -> np.ndarray:
    """Returns for each image three levels, one for each patch (images, PIXELS, PIXELS)."""
    levels = np.random.default_rng(seed).integers(0, 3, (count, 4, 4))
    return levels.repeat(PIXELS // 4, axis=1).repeat(PIXELS // 4, axis=2)


def write(
    folder: Path, count: int, seed: int, targets: str, save: Callable[[np.ndarray, Path], None]
) -> dict[str, str]:
    """Writes images whose brightness tells the level, and targets that `save` makes of the levels."""
    for name in ("images/a", f"{targets}/a"):
        (folder / name).mkdir(parents=True)
    for number, levels in enumerate(blocks(count, seed)):
        Image.fromarray((20 + 100 * levels).astype(np.uint8)).save(folder / f"images/a/{number:02}.png")
        save(levels, folder / f"{targets}/a/{number:02}.png")
    return {"images": str(folder / "images"), targets: str(folder / targets)}


def as_mask(levels: np.ndarray, path: Path) -> None:
    mask = levels.astype(np.uint8)
    mask[0] = 255  # no class
    Image.fromarray(mask).save(path)


def as_depth(levels: np.ndarray, path: Path) -> None:
    depths = (1000 * (1 + levels)).astype(np.uint16)
    depths[0] = 0  # not measured
    Image.fromarray(depths).save(path)


def as_metres(levels: np.ndarray, path: Path) -> None:
    depths = 1.0 + levels
    depths[0] = np.nan
    np.save(path.with_suffix(".npy"), depths)
