"""The pictures of `mrp lab maskgraph`."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mrp.lab import figures
from mrp.lab.maskgraph import graph
from mrp.lab.maskgraph.experiment import Result

SPECTRA = (0.25, 0.5, 0.75)  # the ratios whose eigenvalues are drawn
DIRECTION = {  # what follows by algebra, or what the paper expects
    "label_error": "must rise", "same_class": "cannot change", "same_class_views": "the paper: best near .75",
    "confusable": "cannot change", "second": "must fall", "residual": "must fall",
}  # fmt: skip
WANTED = {"label_error": "label error:", "same_class_views": "edges within classes:", "residual": "eigenvalue sum:"}
SHOWN = 24  # eigenvalues in the picture
PANELS = ("label_error", "same_class", "same_class_views", "confusable", "second", "residual")


def draw_measures(result: Result) -> Figure:
    """Draws the measures against the mask ratio."""
    figure, grid = figures.panels(12, 6.6, 2, 3, sharex=True)
    for panel, name in zip(grid.flatten(), PANELS, strict=True):
        for unit, colour in zip(result.units, figures.COLOURS, strict=False):
            rows = result.of_unit(unit)
            ratios, estimates = [row.ratio for row in rows], [row.estimates[name] for row in rows]
            figures.draw_estimates(panel, ratios, estimates, colour, f"unit {unit}, estimated", lowest=0.0)
            exact = [row.exact[name] for row in rows if row.exact]
            if exact:
                panel.plot(ratios, exact, "x", color="black", markersize=7, label="exact")
        if name.startswith("same_class"):
            panel.axhline(result.chance, color="#888888", linewidth=1, linestyle=":", label="by chance")
        title = graph.MEASURES[name]
        panel.set_title(
            title.replace(" k", f" {result.options.features}") if name == "residual" else title, fontsize=10
        )
        panel.axvline(0.75, color="#c2571a", linewidth=1, linestyle="--")
        panel.annotate(DIRECTION[name], (0.5, 0.92), xycoords="axes fraction", fontsize=9, color="#c2571a", ha="center")
        figures.tidy(panel)
    for panel in grid[1]:
        panel.set(xlabel="mask ratio", ylim=(0, 1.15 * panel.get_ylim()[1]))  # with room for the annotation
    grid[0][1].legend(frameon=False, fontsize=8)
    choices = result.choices(result.units[0])
    best = ", ".join(f"{WANTED[name]} {ratios[0]:.2f}" for name, ratios in choices.items())
    figure.suptitle(f"The ratio that is best by {best} (dashed: .75)", fontsize=11)
    return figure


def draw_spectra(result: Result) -> Figure:
    """Draws the largest eigenvalues at a small, a middle and a large mask ratio."""
    figure, grid = figures.panels(5.2 * len(result.units), 4.2, 1, len(result.units), sharey=True)
    for panel, unit in zip(grid[0], result.units, strict=True):
        rows = result.of_unit(unit)
        shown = {id(row): row for row in (min(rows, key=lambda r: abs(r.ratio - near)) for near in SPECTRA)}
        for row, colour in zip(shown.values(), figures.COLOURS, strict=False):
            numbers = np.arange(1, len(row.eigenvalues) + 1)
            panel.plot(numbers, row.eigenvalues, color=colour, linewidth=1.6, label=f"ratio {row.ratio:.2f}")
            if row.exact_eigenvalues:
                panel.plot(numbers, row.exact_eigenvalues, "x", color=colour, markersize=6)
        panel.set(xlabel="number", xlim=(0.5, SHOWN + 0.5), ylim=(0, 1.03), title=f"unit {unit}")
        figures.tidy(panel)
    grid[0][0].set_ylabel("eigenvalue in the sample" + (" (x: exact)" if result.rows[0].exact else ""))
    grid[0][-1].legend(frameon=False, fontsize=9)
    figure.suptitle("The more is hidden, the smaller is every eigenvalue", fontsize=11)
    return figure
