"""The grid of reconstructions, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mrp.report.pictures import GAP, GREY, HEADER, reconstructions


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
    random = torch.Generator().manual_seed(0)
    images, painted = torch.rand(2, 2, channels, 8, 12, generator=random)
    masks = torch.rand(2, 8, generator=random) < 0.6  # patches of 4 x 3: 2 rows of 4
    hidden = torch.zeros(2, 1, 8, 12, dtype=torch.bool)
    for image, patch in masks.nonzero().tolist():
        row, column = divmod(patch, 4)
        hidden[image, :, 4 * row : 4 * row + 4, 3 * column : 3 * column + 3] = True
    reconstructions(images, masks, painted, (4, 3), tmp_path / "grid.png")
    shown = cells(tmp_path / "grid.png", rows=2, columns=4).unbind(dim=1)
    images, painted = (x if channels == 3 else x[:, :1].repeat(1, 3, 1, 1) for x in (images, painted))
    assert_shows(shown[0], images)
    assert_shows(shown[1], torch.where(hidden, GREY, images))
    assert_shows(shown[2], torch.where(hidden, painted, images))
    assert_shows(shown[3], painted)


def test_without_a_prediction(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 8, 8)
    reconstructions(images, torch.zeros(3, 4, dtype=torch.bool), None, (4, 4), tmp_path / "grid.png")
    shown = cells(tmp_path / "grid.png", rows=3, columns=2)
    assert torch.equal(shown[:, 0], shown[:, 1])


def test_large_images_keep_their_size_and_overshoot_is_cut(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 224, 224)
    reconstructions(images, torch.ones(1, 196, dtype=torch.bool), images + 1.5, (16, 16), tmp_path / "grid.png")
    shown = cells(tmp_path / "grid.png", rows=1, columns=4)
    assert shown.shape[2:4] == (224, 224)
    assert (shown[:, 0] == 0).all()
    assert (shown[:, 3] == 255).all()


def test_each_column_has_a_title(tmp_path: Path) -> None:
    reconstructions(torch.zeros(1, 1, 8, 8), torch.ones(1, 4, dtype=torch.bool), None, (4, 4), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        header = np.asarray(image.convert("L"))[:HEADER]
    left, right = np.array_split(header, 2, axis=1)
    assert left.min() < 100
    assert right.min() < 100
