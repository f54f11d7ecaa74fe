"""The picture of `mrp lab ratio`: what the classifier says, what the rules make of it, and what MAE does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrp.lab import figures
from mrp.lab.estimate import Estimate
from mrp.lab.figures import BLUE, GREEN, ORANGE, VIOLET

SEEN = {
    "label_error": ("label error of a view", ORANGE),
    "one_of_two": ("one of two views tells the class", BLUE),
    "same_class": ("edges within a class", GREEN),
}
RULE_COLOURS = {"balance": ORANGE, "lesson": BLUE}
PROBE_COLOURS = {"knn": GREEN, "linear": VIOLET}
TITLES = {"knn": "kNN", "linear": "linear probe"}


def draw(prediction: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> Figure:
    """Draws the prediction, and beside it what was measured, if MAE has been trained."""
    figure, grid = figures.panels(15 if result else 10, 4.2, 1, 3 if result else 2)
    ratios = prediction["ratios"]
    for name, (label, colour) in SEEN.items():
        estimates = [Estimate(**row[name]) for row in prediction["rows"]]
        figures.draw_estimates(grid[0][0], ratios, estimates, colour, label, lowest=0.0)
    grid[0][0].set(title="before MAE: a masked classifier", ylim=(0, 1))
    for rule, merit in prediction["merits"].items():
        low, high = min(merit), max(merit)
        scaled = [(value - low) / (high - low or 1.0) for value in merit]
        label = f"{rule}: {prediction['best'][rule]:.3g} is best"
        grid[0][1].plot(ratios, scaled, color=RULE_COLOURS[rule], marker=".", label=label)
    grid[0][1].set(title="predicted merit, from least to most", ylim=(-0.03, 1.1))
    for panel in grid[0]:
        _mark(panel, prediction)
        panel.set_xlabel("mask ratio")
        figures.tidy(panel)
    if result:
        _draw_measured(grid[0][2], ratios, result)
        outcomes = [each for each in result["outcomes"] if each["probe"] == "knn" and each["rule"] in RULE_COLOURS]
        found = ", ".join(f"{each['rule']} {fmean(each['rank correlation']):+.2f}" for each in outcomes)
        figure.suptitle(
            f"Predicted merit against kNN accuracy over mask ratios, rank correlation: {found}", fontsize=11
        )
    else:
        figure.suptitle("The prediction, frozen before MAE is trained (dotted: .75)", fontsize=11)
    for panel in grid[0]:
        panel.legend(frameon=False, fontsize=8)
    return figure


def _mark(panel: Axes, prediction: Mapping[str, Any]) -> None:
    """Draws where the rules see the best ratio, and .75."""
    panel.axvline(0.75, color="#888888", linewidth=1, linestyle=":")
    for rule, ratio in prediction["best"].items():
        panel.axvline(ratio, color=RULE_COLOURS[rule], linewidth=1, linestyle="--")


def _draw_measured(panel: Axes, ratios: list[float], result: Mapping[str, Any]) -> None:
    """Draws every seed as a point, and the mean with its interval over test images."""
    for probe, colour in PROBE_COLOURS.items():
        columns = [
            [row[probe] for row in result["measured"] if row["hidden"] == hidden]
            for hidden in result["prediction"]["hidden"]
        ]
        means = [
            Estimate(
                fmean([100 * cell["accuracy"] for cell in column]),
                50 * math.hypot(*(cell["high"] - cell["low"] for cell in column)) / len(column),
            )
            for column in columns
        ]
        figures.draw_estimates(panel, ratios, means, colour, TITLES[probe])
        points = [
            (ratio, 100 * cell["accuracy"]) for ratio, column in zip(ratios, columns, strict=True) for cell in column
        ]
        panel.plot(*zip(*points, strict=True), ".", color=colour, markersize=3, alpha=0.6)
    panel.set(title=f"after: MAE's accuracy in %, seeds: {result['seeds']}")
