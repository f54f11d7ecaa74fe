"""What `mrp lab maskgraph` draws and writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrp.lab.maskgraph import graph
from mrp.lab.maskgraph.experiment import Result, Row

COLOURS = ("#1f5f8b", "#c2571a", "#3b7d3b", "#7a4a8c", "#8c6d1f")
SHOWN = 24  # eigenvalues in the picture
_PANELS = ("label_error", "same_class", "same_class_views", "confusable", "second", "residual")


def write(result: Result, out: Path) -> list[Path]:
    """The numbers as JSON, the measures against the ratio, and the spectra."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = out / "results.json"
    numbers.write_text(json.dumps(as_data(result), indent=1))
    measures, spectra = out / "measures.png", out / "spectra.png"
    _draw_measures(result, measures)
    _draw_spectra(result, spectra)
    return [numbers, measures, spectra]


def as_data(result: Result) -> dict[str, Any]:
    """Everything as plain values, with what each criterion would choose."""
    return {
        **asdict(result),
        "measures": graph.MEASURES,
        "choices": {str(unit): result.choices(unit) for unit in result.units},
    }


def _draw_measures(result: Result, path: Path) -> None:
    figure = Figure(figsize=(12, 6.6), dpi=120, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flatten()
    for panel, name in zip(panels, _PANELS, strict=True):
        for unit, colour in zip(result.units, COLOURS, strict=False):
            _draw_measure(panel, result.of_unit(unit), name, colour, unit)
        if name.startswith("same_class"):
            panel.axhline(result.chance, color="#888888", linewidth=1, linestyle=":", label="by chance")
        title = graph.MEASURES[name].replace(" k", f" {result.options.features}") if name == "residual" else None
        panel.set_title(title or graph.MEASURES[name], fontsize=10)
        _tidy(panel)
    for panel in panels[3:]:
        panel.set(xlabel="mask ratio", ylim=(0, None))
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def _draw_measure(panel: Axes, rows: list[Row], name: str, colour: str, unit: int) -> None:
    ratios = [row.ratio for row in rows]
    found = [row.estimates[name] for row in rows]
    panel.plot(ratios, [item.value for item in found], color=colour, marker=".", label=f"unit {unit}, estimated")
    panel.fill_between(ratios, [max(0, i.low) for i in found], [i.high for i in found], color=colour, alpha=0.18, lw=0)
    if rows[0].exact:
        exact = [row.exact[name] for row in rows if row.exact]
        panel.plot(ratios, exact, "x", color="black", markersize=7, label="exact")


def _draw_spectra(result: Result, path: Path) -> None:
    figure = Figure(figsize=(5.2 * len(result.units), 4.2), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(result.units), sharey=True))
    for panel, unit in zip(panels, result.units, strict=True):
        rows = result.of_unit(unit)
        for row in rows:
            shade = 0.15 + 0.75 * row.ratio
            values = np.array(row.eigenvalues)
            colour = (1 - shade, 0.35, shade)
            numbers = np.arange(1, len(values) + 1)
            style = (
                "--" if row.ratio > 0.5 else "-"
            )  # a ratio and its complement have the same graph, seen from its ends
            panel.plot(numbers, values, style, color=colour, linewidth=1.4, label=f"ratio {row.ratio:.2f}")
            if row.exact_eigenvalues:
                panel.plot(numbers, row.exact_eigenvalues, "x", color=colour, markersize=5)
        panel.set(xlabel="number", xlim=(0.5, SHOWN + 0.5), ylim=(0, 1.03), title=f"unit {unit}")
        _tidy(panel)
    panels[0].set_ylabel("eigenvalue in the sample" + (" (x: exact)" if result.rows[0].exact else ""))
    panels[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, format="png")


def _tidy(panel: Axes) -> None:
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
