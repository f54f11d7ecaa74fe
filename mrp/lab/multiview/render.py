"""The same data as images, for real networks: a patch becomes a square of pixels, a feature becomes a pattern in it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from mrp.config import ConfigError
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.data import Samples, draw, random_stream, splits

SCALE = 2.5  # of a patch's numbers in pixels of 0 to 1: a class's feature is plain to see and seldom clipped


def render(constants: Constants, out: Path) -> dict[str, int]:
    """Writes class folders of PNGs, and returns how many images each split has; everything follows from the seed."""
    side, columns = math.isqrt(constants.d // 3), math.isqrt(constants.P)
    if 3 * side * side != constants.d:
        raise ConfigError(f"d: {constants.d} numbers are no square of pixels in three colours; give 27, 48, 75 or 108")
    if columns * columns != constants.P:
        raise ConfigError(f"P: {constants.P} patches are no square; give 9, 16, 25 or 36")
    for number, (split, (num, single)) in enumerate(splits(constants).items()):
        samples = draw(constants, num, 1, single, random_stream(constants, 8 + number))
        write(_pixels(samples, patterns(side), side, columns), samples.labels[0], out / split)
    return {split: num for split, (num, _) in splits(constants).items()}


def patterns(side: int) -> Tensor:
    """Returns an orthonormal basis of a patch's pixels: cosines of each frequency, with the flat colours last."""
    centres = torch.arange(side) + 0.5
    waves = torch.stack([torch.cos(math.pi * frequency * centres / side) for frequency in range(side)])
    waves /= waves.norm(dim=1, keepdim=True)
    plane = torch.einsum("ay,bx->abyx", waves, waves).reshape(side * side, side, side)
    colours = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]).mT).Q.mT
    order = [*range(1, side * side), 0]
    return rearrange(torch.einsum("pyx,cr->pcryx", plane[order], colours), "p c r y x -> (p c) (y x r)")


def _pixels(samples: Samples, basis: Tensor, side: int, columns: int) -> Tensor:
    values = 0.5 + SCALE * (samples.patches[0] @ basis)
    grid = "n (rows columns) (y x r) -> n (rows y) (columns x) r"
    images: Tensor = rearrange(values, grid, columns=columns, y=side, x=side)
    return (255 * images.clamp(0, 1)).round().to(torch.uint8)


def write(images: Tensor, labels: Tensor, folder: Path) -> None:
    """Writes images (N H W C, uint8) into a folder per class."""
    for index, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        path = folder / f"class_{label:02d}" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(path)
