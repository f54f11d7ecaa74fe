"""The files of `mrp lab bounds`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mrp.lab import figures
from mrp.lab.bounds.experiment import Result, Row
from mrp.lab.estimate import Estimate
from mrp.lab.figures import BLUE, GREEN, GREY, ORANGE

Curve = tuple[str, Callable[[Row], Estimate | float], str]  # label, value, colour
PANELS: dict[str, tuple[Curve, ...]] = {
    "in the units of the loss": (
        ("L_MAE", lambda row: row.loss, BLUE),
        ("the constant encoder's L_MAE", lambda row: row.loss_constant, ORANGE),
        ("Var(x2 | place), its bound", lambda row: row.variance_given_place, GREY),
        ("1/2 E|u - u+|^2, a bound", lambda row: row.half_disagreement, GREEN),
    ),
    "outputs and targets of unit length": (
        ("L_MAE of unit vectors", lambda row: row.loss_directions, BLUE),
        ("1 + L_align, a bound", lambda row: 1 + row.alignment.value, GREEN),
        (
            "1/2 + 1/2 L_align - eps, Theorem 3.4",
            lambda row: 0.5 + 0.5 * row.alignment.value - row.decoder_error.value,
            ORANGE,
        ),
    ),
    "the encoder's feature under masks": (
        ("uniformity (1: collapsed)", lambda row: row.uniformity, BLUE),
        ("alignment E|f - f+|^2", lambda row: row.feature_alignment, GREEN),
    ),
}


def write(result: Result, out: Path) -> list[Path]:
    """Write the numbers as JSON, and the curves; return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    numbers, picture = out / "results.json", out / "bounds.png"
    numbers.write_text(json.dumps(result.as_data(), indent=1))
    figure, grid = figures.panels(13.5, 4, 1, len(PANELS))
    steps = [row.step for row in result.rows]
    for panel, (title, curves) in zip(grid[0], PANELS.items(), strict=True):
        for label, read, colour in curves:
            values = [read(row) for row in result.rows]
            estimates = [value if isinstance(value, Estimate) else Estimate(value, 0.0) for value in values]
            figures.draw_estimates(panel, steps, estimates, colour, label)
        panel.set(xlabel="step", title=title)
        panel.legend(frameon=False, fontsize=8)
        figures.tidy(panel)
    grid[0][-1].set_ylim(0, None)
    figure.savefig(picture, format="png")
    return [numbers, picture]
