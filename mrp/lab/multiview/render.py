"""The same data as images, for the real networks: a patch becomes a square of pixels, a feature a pattern in it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from mrp.config import ConfigError
from mrp.lab.multiview.constants import Settings
from mrp.lab.multiview.data import Samples, draw

SCALE = 2.5  # of a patch's numbers in pixels of 0 to 1: a label's feature is plain to see and seldom clipped
SPLITS = ("train", "test_multi", "test_single")


def render(settings: Settings, out: Path) -> dict[str, int]:
    """Write class folders of PNGs for training and for both kinds of test sample; the seed is the settings'."""
    side, columns = _side(settings), _columns(settings)
    patterns = _patterns(side)
    kinds = ((settings.samples, settings.mu), (settings.tests, 0.0), (settings.tests, 1.0))
    for part, (split, (num, single)) in enumerate(zip(SPLITS, kinds, strict=True)):
        generator = torch.Generator().manual_seed(settings.seed * 16 + 8 + part)
        samples = draw(settings, num, 1, single, generator)
        _write(_pixels(samples, patterns, side, columns), samples.labels[0], out / split)
    return {split: num for split, (num, _) in zip(SPLITS, kinds, strict=True)}


def _side(settings: Settings) -> int:
    side = math.isqrt(settings.d // 3)
    if 3 * side * side != settings.d:
        raise ConfigError(f"d: {settings.d} numbers are no square of pixels in three colours; give 27, 48, 75 or 108")
    return side


def _columns(settings: Settings) -> int:
    columns = math.isqrt(settings.P)
    if columns * columns != settings.P:
        raise ConfigError(f"P: {settings.P} patches are no square; give 9, 16, 25 or 36")
    return columns


def _patterns(side: int) -> Tensor:
    """An orthonormal basis of a patch's pixels, flat colours last: cosines of each frequency in each direction."""
    places = torch.arange(side) + 0.5
    waves = torch.stack([torch.cos(math.pi * frequency * places / side) for frequency in range(side)])
    waves /= waves.norm(dim=1, keepdim=True)
    plane = torch.einsum("ay,bx->abyx", waves, waves).reshape(side * side, side, side)
    colours = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]).mT).Q.mT
    order = [*range(1, side * side), 0]
    return rearrange(torch.einsum("pyx,cr->pcryx", plane[order], colours), "p c r y x -> (p c) (y x r)")


def _pixels(samples: Samples, patterns: Tensor, side: int, columns: int) -> Tensor:
    shown = 0.5 + SCALE * (samples.patches[0] @ patterns)
    grid = "n (rows columns) (y x r) -> n (rows y) (columns x) r"
    images: Tensor = rearrange(shown, grid, columns=columns, y=side, x=side)
    return (255 * images.clamp(0, 1)).round().to(torch.uint8)


def _write(images: Tensor, labels: Tensor, folder: Path) -> None:
    for index, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        place = folder / f"class_{label:02d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(place / f"{index:05d}.png")
