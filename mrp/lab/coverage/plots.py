"""The pictures of `mrp lab coverage`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mrp.lab import figures
from mrp.lab.coverage.experiment import Examples, Row

FRAME = "#35d04a"  # of a wanted quadrant: to be seen on dark and on light maps
COMPARED = {
    "spread": "effective share of patches",
    "regions": "connected regions",
    "focus": "share on wanted quadrants",
    "objects": "wanted quadrants found, of 2",
}


def draw_measures(rows: Sequence[Row]) -> Figure:
    """Draws some measures as bars, and accuracy over deletion."""
    figure, grid = figures.panels(14, 4.2, 1, len(COMPARED) + 1, width_ratios=[1] * len(COMPARED) + [2])
    *bars, curves = grid[0]
    for panel, (name, title) in zip(bars, COMPARED.items(), strict=True):
        for index, (row, colour) in enumerate(zip(rows, cycle(figures.COLOURS), strict=False)):
            estimate = row.measures[name]
            panel.bar(index, estimate.value, yerr=estimate.error, color=colour, capsize=4, width=0.7)
        panel.set_title(title, fontsize=10)
        panel.set_xticks([])
        if name == "focus":
            panel.axhline(0.5, color="#888888", linestyle=":", linewidth=1)
    for row, colour in zip(rows, cycle(figures.COLOURS), strict=False):
        label = f"{Path(row.run).name} ({row.objective}, {row.head} head), by map"
        curves.plot(row.deleted, row.by_map, color=colour, marker=".", label=label)
        curves.plot(row.deleted, row.at_random, color=colour, linestyle="--", linewidth=1, label="at random")
    curves.set(xlabel="share of patches deleted", ylabel="accuracy", ylim=(0, None))
    curves.legend(frameon=False, fontsize=7)
    for panel in grid[0]:
        figures.tidy(panel)
    return figure


def draw_maps(examples: Examples) -> Figure:
    """Draws mosaics in the first row with the wanted quadrants framed, and below them each run's maps of them."""
    titles = ["mosaic", *(Path(name).name for name in examples.maps)]
    full = 255 if examples.images.element_size() == 1 else 65535
    pictures = (examples.images.float().permute(0, 2, 3, 1) / full).numpy()
    extent = (0, pictures.shape[2], pictures.shape[1], 0)
    figure, grid = figures.panels(1.3 * len(pictures), 1.4 * len(titles), len(titles), len(pictures))
    for row, (title, maps) in enumerate(zip(titles, (None, *examples.maps.values()), strict=True)):
        grid[row][0].set_ylabel(title, fontsize=8)
        for column, picture in enumerate(pictures):
            panel = grid[row][column]
            panel.imshow(picture, extent=extent, cmap="grey", vmin=0, vmax=1)
            if maps is not None:
                overlay = maps[column].numpy()
                panel.imshow(overlay, extent=extent, cmap="inferno", alpha=0.65, vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            height, width = (size / 2 for size in picture.shape[:2])
            for quadrant in examples.wanted[column].nonzero()[:, 0].tolist():
                corner = ((quadrant % 2 + 0.05) * width, (quadrant // 2 + 0.05) * height)
                frame = Rectangle(corner, 0.9 * width, 0.9 * height, fill=False, edgecolor=FRAME, linewidth=1.6)
                panel.add_patch(frame)
    figure.suptitle("A map of the wanted class should lie on both framed quadrants", fontsize=9)
    return figure
