"""Images with two features of their class, one in each half: a half of a photograph, and a pattern among noise.

A real network can learn either. Which half is which and where the pattern lies is drawn for each image, so it is known
what a class-activation map should cover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.config import CacheConfig, Config
from mrp.data.open import open_data
from mrp.data.storage.cache import Cache
from mrp.data.subset import Subset
from mrp.lab.images import read
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.data import random_stream
from mrp.lab.multiview.render import patterns, write

CONTRAST = 0.12  # root mean square of a pattern, in pixels of 0 to 1
PATCHES = 2  # along a side of the pattern
GREY = 128  # of a half that is blanked
PARTS = ("pattern", "photograph")


@dataclass(frozen=True, slots=True)
class Images:
    """Images, and which of their patches carry which feature."""

    pixels: Tensor  # N 3 H W uint8
    labels: Tensor  # N
    left: Tensor  # N bool: whether the photograph is the left half
    regions: dict[str, Tensor]  # by the names of PARTS: N rows columns bool

    def without(self, part: str, chosen: Tensor | None = None) -> Images:
        """Returns the images, or the chosen ones (N bool) of them, with the half of that part blanked."""
        blanked = self.left if part == "photograph" else ~self.left
        side = torch.arange(self.pixels.shape[-1]) < self.pixels.shape[-1] // 2
        columns = torch.where(blanked[:, None], side, ~side)
        if chosen is not None:
            columns = columns & chosen[:, None]
        return replace(self, pixels=self.pixels.masked_fill(columns[:, None, None], GREY))


def draw(constants: Constants, data: Path) -> dict[str, Images]:
    """Returns training images, of which a fraction mu show only one feature, and the test sets by what they show.

    Of the constants it takes k (the first classes of the data), mu, samples, tests, sigma (of the noise), seed, and the
    size of the image: P patches of d / 3 pixels each.
    """
    columns, side = math.isqrt(constants.P), math.isqrt(constants.d // 3)
    if columns * columns != constants.P or columns % 2 or columns < 2 * PATCHES or 3 * side * side != constants.d:
        raise ConfigError("P, d: give P of 16, 36 or 64 patches, and d of 48, 75, 108 or 192 numbers in each")
    train, tests = (
        _plant(constants, _photographs(data / split, columns * side, constants.k, count), side, stream)
        for split, count, stream in (("train", constants.samples, 8), ("test", constants.tests, 9))
    )
    chance = torch.rand(len(train.labels), generator=random_stream(constants, 10))
    for part, (low, high) in zip(PARTS, ((0, constants.mu / 2), (constants.mu / 2, constants.mu)), strict=True):
        train = train.without(part, (chance >= low) & (chance < high))
    return {
        "train": train,
        "train_photograph": train.without("pattern"),
        "test_multi": tests,
        "test_pattern": tests.without("photograph"),
        "test_photograph": tests.without("pattern"),
    }


def save(images: dict[str, Images], out: Path) -> None:
    """Writes class folders of PNGs."""
    for split, part in images.items():
        write(part.pixels.permute(0, 2, 3, 1), part.labels, out / split)


def _photographs(folder: Path, size: int, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Returns so many images of the first classes, and their labels."""
    config = Config(train=str(folder), size=size)
    source = open_data(config, "train", Cache(CacheConfig()))
    chosen = np.flatnonzero(np.asarray(source.labels) < classes)
    if len(chosen) < count or len(source.classes) < classes:
        raise ConfigError(f"{folder}: {len(chosen)} images are of the first {classes} classes, and {count} are asked")
    pixels, labels = read(Subset(source, chosen), config, str(folder), count)
    return pixels.expand(-1, 3, -1, -1), labels


def _plant(constants: Constants, photographs: tuple[Tensor, Tensor], side: int, stream: int) -> Images:
    pixels, labels = photographs
    rng, (num, _, size, _) = random_stream(constants, stream), pixels.shape
    rows, half = size // side, size // side // 2
    left = torch.rand(num, generator=rng) < 0.5
    length = PATCHES * side
    shown = patterns(length)[: constants.k].unflatten(1, (length, length, 3)).permute(0, 3, 1, 2)[labels]
    corners = torch.stack(
        [torch.randint(end - PATCHES + 1, (num,), generator=rng) for end in (rows, half)], dim=1
    )  # in patches, within the half
    ground = 0.5 + constants.sigma * torch.randn(num, 3, size, size // 2, generator=rng)
    marked = torch.zeros(num, rows, half, dtype=torch.bool)
    for index, (row, column) in enumerate(corners.tolist()):
        y, x = row * side, column * side
        ground[index, :, y : y + length, x : x + length] += CONTRAST * math.sqrt(shown[0].numel()) * shown[index]
        marked[index, row : row + PATCHES, column : column + PATCHES] = True
    ground = (255 * ground.clamp(0, 1)).round().to(torch.uint8)
    centre = pixels[..., size // 4 : size // 4 + size // 2]
    wide, narrow = left[:, None, None, None], left[:, None, None]
    whole = torch.where(wide, torch.cat([centre, ground], -1), torch.cat([ground, centre], -1))
    empty = torch.zeros_like(marked)
    return Images(
        whole, labels, left,
        {
            "pattern": torch.where(narrow, torch.cat([empty, marked], -1), torch.cat([marked, empty], -1)),
            "photograph": torch.where(narrow, torch.cat([~empty, empty], -1), torch.cat([empty, ~empty], -1)),
        },
    )  # fmt: skip
