"""What `mrp lab coverage` draws and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mrp.lab.coverage.experiment import Examples, Options, Row, as_data

COLOURS = ("#1f5f8b", "#c2571a", "#3b7d3b", "#7a4a8c", "#8c6d1f", "#444444")
_COMPARED = {
    "spread": "effective share of patches",
    "regions": "connected regions",
    "focus": "share on wanted quadrants",
    "objects": "wanted quadrants found, of 2",
}


def write(options: Options, rows: Sequence[Row], examples: Examples, out: Path) -> list[Path]:
    """The numbers as JSON, the measures and deletion curves, and some maps."""
    out.mkdir(parents=True, exist_ok=True)
    numbers, curves, maps = out / "results.json", out / "coverage.png", out / "maps.png"
    numbers.write_text(json.dumps(as_data(options, rows), indent=1))
    _draw_measures(rows, curves)
    _draw_maps(examples, maps)
    return [numbers, curves, maps]


def _draw_measures(rows: Sequence[Row], path: Path) -> None:
    figure = Figure(figsize=(14, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(_COMPARED) + 1, width_ratios=[1] * len(_COMPARED) + [2])
    for panel, (name, title) in zip(panels[:-1], _COMPARED.items(), strict=True):
        for place, (row, colour) in enumerate(zip(rows, _colours(rows), strict=True)):
            found = row.measures[name]
            panel.bar(place, found.value, yerr=found.error, color=colour, capsize=4, width=0.7)
        panel.set_title(title, fontsize=10)
        panel.set_xticks([])
    panels[list(_COMPARED).index("focus")].axhline(0.5, color="#888888", linestyle=":", linewidth=1)
    last = panels[-1]
    for row, colour in zip(rows, _colours(rows), strict=True):
        last.plot(row.deleted, row.by_map, color=colour, marker=".", label=f"{_name(row)}, by map")
        last.plot(row.deleted, row.at_random, color=colour, linestyle="--", linewidth=1, label="at random")
    last.set(xlabel="share of patches deleted", ylabel="accuracy", ylim=(0, None))
    last.legend(frameon=False, fontsize=7)
    for panel in panels:
        panel.grid(color="#e6e6e6", linewidth=0.8, axis="y")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _draw_maps(examples: Examples, path: Path) -> None:
    """Mosaics, and under each what every run's map lies on."""
    count = len(examples.images)
    titles = ["mosaic", *(Path(name).name for name in examples.maps)]
    figure = Figure(figsize=(1.3 * count, 1.4 * len(titles)), dpi=120, layout="constrained")
    panels = figure.subplots(len(titles), count, squeeze=False)
    full = 255 if examples.images.element_size() == 1 else 65535
    pictures = examples.images.float().permute(0, 2, 3, 1) / full
    height, width = pictures.shape[1:3]
    for column in range(count):
        for row, name in enumerate(("", *examples.maps)):
            panel = panels[row][column]
            panel.imshow(pictures[column].numpy(), extent=(0, width, height, 0), cmap="grey", vmin=0, vmax=1)
            if name:
                found = examples.maps[name][column].numpy()
                panel.imshow(found, extent=(0, width, height, 0), cmap="inferno", alpha=0.65, vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
    for row, title in enumerate(titles):
        panels[row][0].set_ylabel(title, fontsize=8)
    figure.savefig(path, format="png")


def _colours(rows: Sequence[Row]) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(rows))]


def _name(row: Row) -> str:
    return f"{Path(row.run).name} ({row.objective}, {row.head} head)"
