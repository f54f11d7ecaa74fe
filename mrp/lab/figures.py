"""The files that experiments write, and what their pictures share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrp.lab.estimate import Estimate
from mrp.report.plots import tidy as tidy

BLUE, ORANGE, GREEN, VIOLET, BROWN, GREY = "#1f5f8b", "#c2571a", "#3b7d3b", "#7a4a8c", "#8c6d1f", "#444444"
COLOURS = (BLUE, ORANGE, GREEN, VIOLET, BROWN, GREY)


def write(out: Path, numbers: str, data: Mapping[str, Any], pictures: Mapping[str, Figure]) -> None:
    """Writes the numbers as JSON and the pictures, each under its name, and says where they are."""
    out.mkdir(parents=True, exist_ok=True)
    (out / numbers).write_text(json.dumps(data, indent=1))
    print(f"written to {out / numbers}")
    save(out, pictures)


def save(out: Path, pictures: Mapping[str, Figure]) -> None:
    """Writes the pictures, each under its name, and says where they are."""
    for name, figure in pictures.items():
        figure.savefig(out / name, format="png")
        print(f"written to {out / name}")


def panels(width: float, height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """Returns a figure of that size in inches, and its panels as an array (rows columns)."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def draw_estimates(
    panel: Axes, x: Sequence[float], estimates: Sequence[Estimate], colour: str, label: str, lowest: float = -math.inf
) -> None:
    """Draws a line, and the 95 % intervals as a band around it; `lowest` is the smallest possible value."""
    panel.plot(x, [estimate.value for estimate in estimates], color=colour, marker=".", label=label)
    low = [max(lowest, estimate.low) for estimate in estimates]
    panel.fill_between(x, low, [estimate.high for estimate in estimates], color=colour, alpha=0.15, lw=0)
