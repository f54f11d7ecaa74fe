"""The pictures of `mrp lab coverage`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mrp.lab import figures
from mrp.lab.coverage.experiment import Examples, Row
from mrp.report.looks import overlay

FRAME = "#35d04a"  # of a wanted quadrant: to be seen on dark and on light maps
KINDS = {"": "gradient x activation", "eigen_": "Eigen-CAM"}
PREDICTED = "predicted: reconstruction higher"


def draw_measures(rows: Sequence[Row]) -> Figure:
    """Draws what both kinds of map cover of the wanted and of the other quadrants, and accuracy over deletion."""
    figure, grid = figures.panels(14.5, 4.4, 1, 4, width_ratios=[1.3, 1.3, 1.2, 1.5])
    *areas, focus, curves = grid[0]
    for panel, (prefix, kind) in zip(areas, KINDS.items(), strict=True):
        _bars(panel, rows, [f"{prefix}object_area", f"{prefix}other_area"])
        panel.set_title(f"{kind}: covered share\nof wanted and (hatched) other quadrants", fontsize=10)
    _bars(focus, rows, ["focus", "eigen_focus"])
    focus.set_title(
        "share of the map on wanted quadrants:\nof a class, Eigen-CAM (hatched), chance (dots)", fontsize=10
    )
    focus.axhline(0.5, color="#555555", linestyle=":", linewidth=1.2)
    for row, colour in zip(rows, cycle(figures.COLOURS), strict=False):
        lost = [random - by_map for random, by_map in zip(row.at_random, row.by_map, strict=True)]
        curves.plot(row.deleted, lost, color=colour, marker=".", label=f"{_name(row)}, {row.head} head")
    curves.axhline(0, color="#555555", linestyle=":", linewidth=1.2)
    curves.set_title("accuracy lost to deletion in the map's order,\nover that in random order", fontsize=10)
    curves.set(xlabel="share of patches deleted")
    curves.annotate("a map that means something is above 0", (0.5, 0.15), xycoords="axes fraction", fontsize=8,
                    ha="center", color=figures.ORANGE)  # fmt: skip
    curves.legend(frameon=False, fontsize=8)
    for panel in grid[0]:
        figures.tidy(panel)
    figure.suptitle(finding(rows), fontsize=11)
    return figure


def finding(rows: Sequence[Row]) -> str:
    """Returns what the maps of a class cover, in a sentence of lines that the figure is wide enough for."""
    parts = []
    for row in rows:
        wanted, others = (row.measures[name] for name in ("object_area", "other_area"))
        parts.append(f"{_name(row)} {wanted.value:.0%} of the wanted quadrants and {others.value:.0%} of the others")
    return textwrap.fill("The maps of a class cover: " + "; ".join(parts), 150)


def _bars(panel: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Draws two bars for every run, with 95 % intervals."""
    for index, (row, colour) in enumerate(zip(rows, cycle(figures.COLOURS), strict=False)):
        for side, (name, hatch) in enumerate(zip(names, ("", "////"), strict=True)):
            estimate = row.measures[name]
            panel.bar(
                index + 0.38 * (side - 0.5), estimate.value, width=0.36, yerr=estimate.error, capsize=3,
                color="white" if hatch else colour, edgecolor=colour, hatch=hatch,
            )  # fmt: skip
    panel.set_xticks(range(len(rows)), [_name(row) for row in rows], fontsize=8)
    panel.set_ylim(0, panel.get_ylim()[1] * 1.15)
    panel.annotate(f"{PREDICTED} \u2191", (0.5, 0.95), xycoords="axes fraction", fontsize=8, ha="center",
                   color=figures.ORANGE)  # fmt: skip


def _name(row: Row) -> str:
    return Path(row.run).name


def draw_maps(rows: Sequence[Row], examples: Examples) -> Figure:
    """Draws mosaics in the first row with the wanted quadrants framed, and below them each run's maps of them."""
    full = 255 if examples.images.element_size() == 1 else 65535
    pixels = examples.images.float() / full
    shown = {"mosaic": pixels.permute(0, 2, 3, 1).numpy()}
    for run, kinds in examples.maps.items():
        shown |= {f"{Path(run).name}\n{kind}": overlay(pixels, maps) for kind, maps in kinds.items()}
    figure, grid = figures.panels(1.3 * len(pixels), 1.4 * len(shown) + 0.4, len(shown), len(pixels))
    for panels, (title, pictures) in zip(grid, shown.items(), strict=True):
        panels[0].set_ylabel(title, fontsize=7)
        for panel, picture, wanted in zip(panels, pictures, examples.wanted, strict=True):
            panel.imshow(picture, cmap="grey", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            height, width = (size / 2 for size in picture.shape[:2])
            for quadrant in torch.nonzero(wanted)[:, 0].tolist():
                corner = ((quadrant % 2 + 0.05) * width - 0.5, (quadrant // 2 + 0.05) * height - 0.5)
                frame = Rectangle(corner, 0.9 * width, 0.9 * height, fill=False, edgecolor=FRAME, linewidth=1.6)
                panel.add_patch(frame)
    shares = "; ".join(
        f"{_name(row)} {row.measures['focus'].value:.2f} (Eigen-CAM {row.measures['eigen_focus'].value:.2f})"
        for row in rows
    )
    figure.suptitle(f"Share of the map on the framed quadrants (chance .50): {shares}", fontsize=9)
    return figure
