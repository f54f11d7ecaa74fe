"""What `mrp lab bounds` draws and writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrp.lab.bounds.experiment import Result, Row
from mrp.lab.mean import Mean

_BLUE, _ORANGE, _GREEN, _GREY = "#1f5f8b", "#c2571a", "#3b7d3b", "#777777"
_OWN_UNITS: dict[str, tuple[Callable[[Row], Mean | float], str]] = {
    "L_MAE": (lambda row: row.loss, _BLUE),
    "the constant encoder's L_MAE": (lambda row: row.loss_constant, _ORANGE),
    "Var(x2 | place), its bound": (lambda row: row.variance_given_place, _GREY),
    "1/2 E|u - u+|^2, a bound": (lambda row: row.half_disagreement, _GREEN),
}
_DIRECTIONS: dict[str, tuple[Callable[[Row], Mean | float], str]] = {
    "L_MAE of unit vectors": (lambda row: row.loss_directions, _BLUE),
    "1 + L_align, a bound": (lambda row: 1 + row.alignment.value, _GREEN),
    "1/2 + 1/2 L_align - eps, Theorem 3.4": (
        lambda row: 0.5 + 0.5 * row.alignment.value - row.decoder_error.value,
        _ORANGE,
    ),
}
_FEATURES: dict[str, tuple[Callable[[Row], Mean | float], str]] = {
    "uniformity (1: collapsed)": (lambda row: row.uniformity, _BLUE),
    "alignment E|f - f+|^2": (lambda row: row.feature_alignment, _GREEN),
}


def write(result: Result, out: Path) -> list[Path]:
    """The numbers as JSON, and the curves."""
    out.mkdir(parents=True, exist_ok=True)
    numbers, picture = out / "results.json", out / "bounds.png"
    numbers.write_text(json.dumps(result.as_data(), indent=1))
    figure = Figure(figsize=(13.5, 4), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3)
    _draw(panels[0], result, _OWN_UNITS, "in the units of the loss")
    _draw(panels[1], result, _DIRECTIONS, "outputs and targets of unit length")
    _draw(panels[2], result, _FEATURES, "the encoder's feature under masks")
    panels[2].set_ylim(0, None)
    figure.savefig(picture, format="png")
    return [numbers, picture]


def _draw(panel: Axes, result: Result, lines: dict[str, tuple[Callable[[Row], Mean | float], str]], title: str) -> None:
    steps = [row.step for row in result.rows]
    for label, (read, colour) in lines.items():
        found = [read(row) for row in result.rows]
        values = [item.value if isinstance(item, Mean) else item for item in found]
        panel.plot(steps, values, color=colour, marker=".", label=label)
        errors = [item.error if isinstance(item, Mean) else 0.0 for item in found]
        low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
        panel.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    panel.set(xlabel="step", title=title)
    panel.legend(frameon=False, fontsize=8)
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
