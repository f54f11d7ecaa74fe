"""Pages of images side by side: reconstructions beside what was hidden, maps beside what they are of."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from mrp.batch import three_channels
from mrp.config import ConfigError
from mrp.files import replacing

CELL = 160  # pixels that the longer side of a small image is magnified to, about
GAP = 6  # pixels between cells
HEADER = 26  # pixels above the first row, for the titles
LINE = 18  # pixels of a line of text
MARGIN = 128  # pixels left of the first column where rows have names
DPI = 128  # a power of two: a size in inches is then exact, and no row of pixels is lost
GREY = 0.5
_SMALL, _LARGE = 8, 9  # points of the text
_LETTER, _NAME = 8.0, 9.4  # pixels of a letter, in a sentence and where there are many digits, on average
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # behind words that lie on an image
_MOST = 2**15  # pixels on a side of a page


@dataclass(frozen=True)
class Column:
    """Images below each other (B C H W, in 0..1), with a title, and perhaps words within each of them."""

    title: str
    images: Tensor
    captions: Sequence[str] = ()


def _displayed(images: Tensor) -> Tensor:
    """Returns three channels within 0..1, magnified by a whole number so that each pixel stays a sharp square."""
    images = three_channels(images)
    times = max(1, round(CELL / max(images.shape[2:])))
    magnified = repeat(images, "b c h w -> b c (h m) (w n)", m=times, n=times)
    return magnified.detach().float().cpu().clamp(0, 1)


def write_page(columns: Sequence[Column], out_path: Path, heading: str = "", rows: Sequence[str] = ()) -> None:
    """Writes a PNG: the images pixel for pixel on white, titles above the columns, and the rows' names before them.

    Cells are as large as those of the first column; images of other sizes are brought to that.
    """
    shown = [_displayed(column.images) for column in columns]
    size = shown[0].shape[2:]
    cells = torch.stack([x if x.shape[2:] == size else functional.interpolate(x, size) for x in shown], dim=1)
    cells = functional.pad(cells, (0, GAP, 0, GAP), value=1.0)  # B columns 3 H W
    step_down, step_across = cells.shape[-2:]
    titles = [_wrapped(column.title, step_across - GAP) for column in columns]
    left = GAP + (MARGIN if rows else 0)
    width = left + len(columns) * step_across
    lines = _wrapped(heading, width - 2 * GAP, _LETTER * _LARGE / _SMALL) if heading else []
    above = round(LINE * len(lines) * _LARGE / _SMALL) + (GAP if lines else 0)
    top = above + HEADER + LINE * (max(map(len, titles)) - 1)
    height = top + len(cells) * step_down
    if max(width, height) > _MOST:
        raise ConfigError(
            f"{out_path}: would be a page of {width} x {height} pixels; show fewer images, or less of each"
        )
    page = torch.ones(height, width, 3)
    page[top:, left:] = rearrange(cells, "b columns c h w -> (b h) (columns w) c")
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(page.numpy())

    def write(x: float, y: float, lines: list[str], across: str, down: str = "center", **more: Any) -> None:
        place, text = (x / width, 1 - y / height), "\n".join(lines)  # a name may hold a $, which is no formula
        figure.text(*place, text, ha=across, va=down, parse_math=False, **({"fontsize": _SMALL} | more))

    write(GAP, GAP, lines, "left", "top", fontsize=_LARGE)
    for number, title in enumerate(titles):
        write(left + number * step_across + (step_across - GAP) / 2, (above + top) / 2, title, "center")
        for row, caption in enumerate(columns[number].captions):
            if not caption:
                continue
            place = left + number * step_across + 3, top + (row + 1) * step_down - GAP - 3
            write(*place, _wrapped(caption, step_across - GAP)[:1], "left", "bottom", fontsize=7, bbox=_BOX)
    for row, name in enumerate(rows):
        middle = top + row * step_down + (step_down - GAP) / 2
        write(left - 2 * GAP, middle, _wrapped(name, MARGIN, _NAME), "right")
    with replacing(out_path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names may be in any script
        figure.savefig(file, format="png")


def _wrapped(text: str, width: int, letter: float = _LETTER) -> list[str]:
    """Returns a text as lines that are no wider than so many pixels."""
    letters = max(8, int(width / letter))
    return [line for part in text.split("\n") for line in textwrap.wrap(part, letters, break_on_hyphens=False)] or [""]
