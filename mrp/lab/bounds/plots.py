"""The picture of `mrp lab bounds`."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from mrp.lab import figures
from mrp.lab.bounds.experiment import Result, Row
from mrp.lab.estimate import Estimate
from mrp.lab.figures import BLUE, GREEN, GREY, ORANGE

PANELS = {  # for each curve its label, the name of its values, and its colour
    "in the units of the loss": (
        ("loss", "loss", BLUE),
        ("loss with a constant encoder", "loss_constant", ORANGE),
        ("Var(x2 | place), its bound", "variance_given_place", GREY),
        ("1/2 E|u - u+|^2, a bound", "half_disagreement", GREEN),
    ),
    "outputs and targets of unit length": (
        ("loss of unit vectors", "loss_directions", BLUE),
        ("2 - 2 sqrt(-L_align), a bound", "sharper_bound", GREEN),
        ("1/2 + 1/2 L_align - eps, Theorem 3.4", "theorem_bound", ORANGE),
    ),
    "share of the loss that a bound explains": (
        ("1/2 E|u - u+|^2, of the loss", "explained_disagreement", BLUE),
        ("2 - 2 sqrt(-L_align), of unit vectors", "explained_directions", GREEN),
    ),
    "under two masks": (
        ("centred correlation of outputs", "correlation", ORANGE),
        ("uniformity (1: collapsed)", "uniformity", BLUE),
        ("alignment E|f - f+|^2", "feature_alignment", GREEN),
    ),
}


def draw(result: Result) -> Figure:
    """Draws both sides of the inequalities against the step."""
    figure, grid = figures.panels(17, 4, 1, len(PANELS))
    steps, curves = [row.step for row in result.rows], [_curves(row) for row in result.rows]
    for panel, (title, lines) in zip(grid[0], PANELS.items(), strict=True):
        for label, name, colour in lines:
            figures.draw_estimates(panel, steps, [values[name] for values in curves], colour, label)
        panel.set(xlabel="step", title=title)
        panel.legend(frameon=False, fontsize=8)
        figures.tidy(panel)
    for panel in grid[0][2:]:
        panel.set_ylim(0, None)
    last = result.rows[-1].numbers
    shares = (
        f"{last['explained_disagreement']:.0%} of the loss, {last['explained_directions']:.0%} of that of directions"
    )
    figure.suptitle(f"At the last checkpoint disagreement explains {shares}", fontsize=11)
    return figure


def _curves(row: Row) -> dict[str, Estimate]:
    """Returns the values of a row, and the bounds that follow from them, which are drawn without an interval."""
    alignment, eps = row.means["alignment"].value, row.means["decoder_error"].value
    numbers = row.numbers | {
        "sharper_bound": 2 - 2 * math.sqrt(max(-alignment, 0.0)),
        "theorem_bound": 0.5 + 0.5 * alignment - eps,
    }
    return row.means | {name: Estimate(value, 0.0) for name, value in numbers.items()}
