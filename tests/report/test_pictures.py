"""Pages of images, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mrp.batch import of_pixels
from mrp.config import ConfigError
from mrp.report import gallery
from mrp.report.pictures import GAP, HEADER, Column, write_page


def cells(path: Path, rows: int, columns: int) -> Tensor:
    """The page cut back into cells: rows columns H W 3."""
    with Image.open(path) as image:
        page = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    height, width = (page.shape[0] - HEADER) // rows, (page.shape[1] - GAP) // columns
    assert page.shape == (HEADER + rows * height, GAP + columns * width, 3)
    cut = page[HEADER:, GAP:].unflatten(0, (rows, height)).unflatten(2, (columns, width)).transpose(1, 2)
    assert (cut[:, :, -GAP:] == 255).all()
    assert (cut[:, :, :, -GAP:] == 255).all()
    return cut[:, :, :-GAP, :-GAP]


def magnified(images: Tensor, shape: torch.Size) -> Tensor:
    """B 3 H W in 0..1 as bytes of the size of a cell."""
    times = shape[0] // images.shape[2]
    large = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    return (large * 255).permute(0, 2, 3, 1)


def assert_shows(cell: Tensor, images: Tensor) -> None:
    expected = magnified(images, cell.shape[1:])
    assert cell.shape == expected.shape
    assert float((cell - expected).abs().max()) <= 1  # a byte is rounded


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_column(tmp_path: Path, channels: int) -> None:
    first, second = torch.rand(2, 2, channels, 8, 12, generator=torch.Generator().manual_seed(0))
    write_page([Column("first", first), Column("second", second)], tmp_path / "page.png")
    shown = cells(tmp_path / "page.png", rows=2, columns=2).unbind(dim=1)
    for cell, images in zip(shown, (first, second), strict=True):
        assert_shows(cell, images if channels == 3 else images[:, :1].repeat(1, 3, 1, 1))


def test_the_mask_of_each_pixel() -> None:
    masks = torch.rand(2, 8, generator=torch.Generator().manual_seed(0)) < 0.6  # patches of 4 x 3: 2 rows of 4
    hidden = torch.zeros(2, 1, 8, 12, dtype=torch.bool)
    for image, patch in masks.nonzero().tolist():
        row, column = divmod(patch, 4)
        hidden[image, :, 4 * row : 4 * row + 4, 3 * column : 3 * column + 3] = True
    assert torch.equal(of_pixels(masks, (4, 3), (2, 3, 8, 12)), hidden)


def test_large_images_keep_their_size_and_overshoot_is_cut(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 224, 224)
    write_page([Column("black", images), Column("above", images + 1.5)], tmp_path / "page.png")
    shown = cells(tmp_path / "page.png", rows=1, columns=2)
    assert shown.shape[2:4] == (224, 224)
    assert (shown[:, 0] == 0).all()
    assert (shown[:, 1] == 255).all()


def test_images_of_another_size_are_brought_to_that_of_the_first(tmp_path: Path) -> None:
    small, large = torch.rand(1, 3, 16, 16), torch.full((1, 3, 224, 224), 0.25)
    write_page([Column("small", small), Column("large", large)], tmp_path / "page.png")
    shown = cells(tmp_path / "page.png", rows=1, columns=2)
    assert_shows(shown[:, 0][0][None], small)
    assert shown[:, 1].unique().tolist() in ([63], [64])


def test_each_column_has_a_title(tmp_path: Path) -> None:
    write_page([Column(title, torch.zeros(1, 1, 8, 8)) for title in ("input", "$x_ {")], tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        header = np.asarray(image.convert("L"))[:HEADER]
    left, right = np.array_split(header, 2, axis=1)
    assert left.min() < 100
    assert right.min() < 100


def test_features_that_have_collapsed_to_one_point_are_said_to_have() -> None:
    found = gallery.HeldOut(torch.zeros(10, 1, 8, 8), np.zeros(10, np.int64), ("a",))
    same: Any = SimpleNamespace(features=lambda images: torch.full((len(images), 8), 0.1))
    with pytest.raises(ConfigError, match="features of all held-out images are the same: they have collapsed"):
        list(gallery._embedding(same, found))
