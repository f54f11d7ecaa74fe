"""Reconstructions side by side with what was hidden."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange, repeat
from matplotlib.figure import Figure
from torch import Tensor

CELL = 160  # pixels that the longer side of a small image is magnified to, about
GAP = 6  # pixels between cells
HEADER = 26  # pixels above the first row, for the titles
DPI = 128  # a power of two: a size in inches is then exact, and no row of pixels is lost
GREY = 0.5


def reconstructions(
    images: Tensor,  # B C H W in 0..1
    masks: Tensor,  # B N bool: True means hidden
    predictions: Tensor | None,  # B C H W in 0..1; without it only what the model sees is shown
    patch: tuple[int, int],  # height and width of one patch
    out_path: str | Path,
) -> None:
    """Writes a PNG with one row per image: the input, the part that the model sees, and its reconstruction."""
    hidden = _pixels(masks, images.shape, patch)
    columns = {"input": images, "masked": images.masked_fill(hidden, GREY)}
    if predictions is not None:
        # A prediction is often poor at the visible patches, which the loss does not cover: hence both views.
        columns["reconstruction"] = predictions.where(hidden, images)
        columns["prediction"] = predictions
    _write_grid({title: _displayed(column) for title, column in columns.items()}, out_path)


def _pixels(masks: Tensor, shape: torch.Size, patch: tuple[int, int]) -> Tensor:
    """Returns the mask of each pixel, the same for all channels."""
    height, width = patch
    pattern = "b (rows columns) -> b 1 (rows height) (columns width)"
    hidden: Tensor = repeat(masks, pattern, rows=shape[2] // height, height=height, width=width)
    return hidden


def _displayed(images: Tensor) -> Tensor:
    """Returns three channels within 0..1, magnified by a whole number so that each pixel stays a sharp square."""
    if images.shape[1] != 3:
        images = repeat(images[:, :1], "b 1 h w -> b c h w", c=3)
    times = max(1, round(CELL / max(images.shape[2:])))
    magnified = repeat(images, "b c h w -> b c (h m) (w n)", m=times, n=times)
    return magnified.detach().float().cpu().clamp(0, 1)


def _write_grid(columns: dict[str, Tensor], out_path: str | Path) -> None:
    """Places the images pixel for pixel on a white page, with a title above each column."""
    cells = torch.stack(list(columns.values()), dim=1)  # B columns 3 H W
    cells = torch.nn.functional.pad(cells, (0, GAP, 0, GAP), value=1.0)
    step = cells.shape[-1]
    page = rearrange(cells, "b columns c h w -> (b h) (columns w) c")
    page = torch.nn.functional.pad(page, (0, 0, GAP, 0, HEADER, 0), value=1.0)
    height, width = page.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(page.numpy())
    for index, title in enumerate(columns):
        middle = GAP + index * step + (step - GAP) / 2
        figure.text(middle / width, 1 - HEADER / 2 / height, title, ha="center", va="center", fontsize=8)
    figure.savefig(out_path, format="png")
