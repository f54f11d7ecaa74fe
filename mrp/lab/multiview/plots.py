"""The pictures of `mrp lab multiview`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mrp.lab import figures
from mrp.lab.estimate import Estimate
from mrp.lab.multiview.compare import MAP, METHODS, Result
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.descent import OPTIMIZERS
from mrp.lab.multiview.diversity import TUNED, Row
from mrp.lab.multiview.grid import OBJECTIVES, Cell, diverged, shown

COLOURS = {"teacher": figures.BLUE, "patches": figures.GREEN, "scratch": figures.ORANGE}
MARKERS = {"teacher": "o", "patches": "s", "scratch": "^"}


def draw_correlations(constants: Constants, results: dict[str, Result]) -> Figure:
    """Draws the inner products of kernels and features over training, for the first seed: one row per method."""
    pictures = {method: result.trace.pictures for method, result in results.items()}
    columns = max(len(steps) for steps in pictures.values())
    figure, grid = figures.panels(
        2.9 * columns + 1.2, 2.6 * len(pictures) + 0.6, len(pictures), columns, sharex=True, sharey=True
    )
    for row, (method, steps) in zip(grid, pictures.items(), strict=True):
        for panel, (step, products) in zip(row, steps.items(), strict=False):
            image = panel.imshow(
                products[_order(steps[max(steps)])].T.numpy(), aspect="auto", cmap="RdBu_r",
                vmin=-2 * constants.t, vmax=2 * constants.t, interpolation="nearest",
            )  # fmt: skip
            panel.set_title(f"{METHODS[method]}, step {step}", fontsize=9)
        row[0].set_ylabel("feature (two per class)")
        row[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in grid[-1]:
        panel.set_xlabel("kernel, by the feature it ends with")
    figure.colorbar(image, ax=grid, label="inner product of kernel and feature (t = linear part)", extend="both")
    ends = {method: results[method].kernels["captured"].value for method in pictures}
    found = "; ".join(f"{METHODS[method]} {share:.0%}" for method, share in ends.items())
    figure.suptitle(
        f"Features that a kernel has captured in the end: {found} (predicted: all by pretraining)", fontsize=10
    )
    return figure


def _order(last: Tensor) -> list[int]:
    """Returns the kernels in the order of the feature that each is nearest to in the end, the nearest first."""
    values, features = last.max(dim=1)
    return sorted(range(len(last)), key=lambda kernel: (int(features[kernel]), -float(values[kernel])))


def draw_capture(constants: Constants, results: dict[str, Result]) -> Figure:
    """Draws the number of captured features over training: thin lines for seeds, thick lines for their mean."""
    figure, grid = figures.panels(8, 4.2, 1, 2, sharey=True)
    groups = (("pretraining", ("teacher", "patches")), ("supervised training", ("scratch",)))
    for panel, (title, methods) in zip(grid[0], groups, strict=True):
        for method in methods:
            captured = results[method].trace.captured
            steps, features = list(captured), np.array(list(captured.values())) * constants.features
            panel.plot(steps, features, color=COLOURS[method], linewidth=0.7, alpha=0.4)
            panel.plot(steps, features.mean(axis=1), color=COLOURS[method], linewidth=2.2, label=METHODS[method])
        panel.axhline(constants.features, color="#888888", linewidth=1, linestyle=":")
        panel.axhline(constants.k, color="#888888", linewidth=1, linestyle="--")
        panel.set(xlabel=f"step of {title}", ylim=(-0.3, 1.06 * constants.features))
        panel.legend(frameon=False, fontsize=9, loc="lower right")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        figures.tidy(panel)
    for label, height in (("all 2k", constants.features), ("one per class", constants.k)):
        grid[0][0].annotate(label, (0, height), xytext=(2, 3), textcoords="offset points", fontsize=8)
    grid[0][0].set_ylabel(f"captured features of {constants.features}")
    ends = {method: np.mean(list(result.trace.captured.values())[-1]) for method, result in results.items()}
    found = ", ".join(f"{METHODS[method]} {constants.features * end:.3g}" for method, end in ends.items())
    figure.suptitle(f"Of {constants.features} features: {found} (predicted: dotted, dashed)", fontsize=10)
    return figure


def draw_sweep(constants: Constants, name: str, results: dict[float, dict[str, Result]]) -> Figure:
    """Draws captured features and accuracies against one constant; bars are 95 % intervals over seeds."""
    figure, grid = figures.panels(12, 3.9, 1, 4)
    measures: dict[str, Callable[[Result], Estimate]] = {
        "captured features, share": lambda result: result.kernels["captured"],
        "accuracy, multi-view samples": lambda result: result.accuracy["multi-view"],
        "accuracy, single-view samples": lambda result: result.accuracy["single-view"],
        "error on the mixture": lambda result: result.accuracy["total error"],
    }
    for panel, (title, measure) in zip(grid[0], measures.items(), strict=True):
        for index, method in enumerate(METHODS):
            estimates = [measure(methods[method]) for methods in results.values()]
            x = [column + (index - 1) * 0.06 for column in range(len(estimates))]
            panel.errorbar(
                x, [each.value for each in estimates], yerr=[each.error for each in estimates], color=COLOURS[method],
                marker=MARKERS[method], markersize=4.5, linewidth=1.6, capsize=2, label=METHODS[method],
            )  # fmt: skip
        panel.set_title(title, fontsize=10)
        panel.set(xlabel=name, xticks=range(len(results)), xticklabels=[f"{value:g}" for value in results])
        if panel is not grid[0][3]:
            panel.set_ylim(-0.03, 1.05)
        figures.tidy(panel)
    of_mu = [0.5 * value if name == "mu" else 0.5 * constants.mu for value in results]
    error = grid[0][3]
    error.plot(range(len(results)), of_mu, color="#555555", linestyle="--", linewidth=1, label="0.5 mu")
    error.set_ylim(0, min(1.02, error.get_ylim()[1]))
    error.legend(frameon=False, fontsize=8)
    grid[0][2].axhline(0.5, color="#555555", linestyle=":", linewidth=1)
    grid[0][2].annotate("predicted: pretrained 1, scratch .5", (0.5, 0.05), xycoords="axes fraction", fontsize=8,
                        ha="center", color=figures.ORANGE)  # fmt: skip
    ends = {method: [one[method].accuracy["single-view"].value for one in results.values()] for method in METHODS}
    found = "; ".join(f"{METHODS[method]} {min(values):.2f} to {max(values):.2f}" for method, values in ends.items())
    figure.suptitle(f"Single-view accuracy over {name}: {found}", fontsize=10)
    return figure


def draw_grid(cells: dict[str, dict[str, Cell]]) -> Figure:
    """Draws captured features and single-view accuracy of every objective with every optimizer, after long training."""
    figure, panels = figures.panels(12.5, 4.4, 1, 2, sharey=True)
    measures = {
        "captured features, share": ("kernels", "captured"),
        "accuracy, single-view": ("accuracy", "single-view"),
    }
    for panel, (title, (part, name)) in zip(panels[0], measures.items(), strict=True):
        values = np.full((len(cells), len(OPTIMIZERS)), np.nan)
        for (row, objective), (column, optimizer) in itertools.product(enumerate(cells), enumerate(OPTIMIZERS)):
            cell = cells[objective][optimizer]
            if diverged(cell["rows"]):
                text = "diverges"
            else:
                entry = shown(cell)[part][name]
                values[row, column] = entry["mean"]
                text = f"{entry['mean']:.2f} +- {entry['half']:.2f}"
                if cell["settled"] is None and objective != "none":
                    text += "\n(still changing)"
            ink = "white" if values[row, column] < 0.55 else "black"
            panel.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        image = panel.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        panel.set_title(title, fontsize=10)
        panel.set_xticks(
            range(len(OPTIMIZERS)), [name.replace(" ", "\n", 1) for name in OPTIMIZERS.values()], fontsize=9
        )
        panel.set_yticks(range(len(cells)), [OBJECTIVES[objective] for objective in cells], fontsize=9)
    figure.colorbar(image, ax=panels)
    with_clock, plain = (_captured_by(cells["supervised"][name]) for name in ("kernel", "sgd"))
    figure.suptitle(f"Supervised training captures {with_clock} with a clock per kernel, {plain} by plain descent")
    return figure


def _captured_by(cell: Cell) -> str:
    return "nothing, it diverges," if diverged(cell["rows"]) else f"{shown(cell)['kernels']['captured']['mean']:.0%}"


def draw_diversity(constants: Constants, rows: Sequence[Row]) -> Figure:
    """Draws what is captured, and single-view accuracy, against the number of classes in pretraining."""
    figure, grid = figures.panels(13, 4.2, 1, 3, sharey=True)
    first, *accuracies = grid[0]
    rows = [row for row in rows if row.world == "open"]
    for height in (0, 1):
        first.axhline(height, color=figures.ORANGE, linewidth=1, linestyle=":")
    first.annotate("predicted: seen 1, unseen 0 (dotted)", (0.97, 0.75), xycoords="axes fraction", fontsize=8,
                   ha="right", color=figures.ORANGE)  # fmt: skip
    for method in ("teacher", "patches"):
        mine = [row for row in rows if row.method == method and row.tuned == TUNED[0]]
        for part, line in (("seen", "-"), ("unseen", "--")):
            shown = [(row.classes, row.captured[part]) for row in mine if part in row.captured and row.classes]
            _draw_bars(first, shown, COLOURS[method], line, f"{METHODS[method]}: {part} classes")
    first.set_title("features captured by pretraining, share", fontsize=10)
    for panel, method in zip(accuracies, ("teacher", "patches"), strict=True):
        for steps, colour in zip(TUNED, (figures.BROWN, figures.VIOLET, figures.GREY), strict=False):
            mine = [row for row in rows if row.method == method and row.tuned == steps]
            for part, line in (("seen", "-"), ("unseen", "--")):
                shown = [(row.classes, row.single_view[part]) for row in mine if part in row.single_view]
                _draw_bars(panel, shown, colour, line, f"{part} classes, tuned {steps} steps")
        panel.set_title(f"{METHODS[method]}: single-view accuracy after tuning on all", fontsize=10)
    for panel in grid[0]:
        panel.set(xlabel=f"classes in pretraining, of {constants.k} (0: no pretraining)", ylim=(-0.05, 1.08))
        panel.legend(frameon=False, fontsize=7, loc="center right")
        figures.tidy(panel)
    tuned = [row for row in rows if row.method == "teacher" and row.tuned == TUNED[len(TUNED) // 2]]
    none, half = tuned[0], [row for row in tuned if row.classes < constants.k][-1]
    figure.suptitle(
        f"Pretrained on {half.classes} of {constants.k} classes (teacher): {half.captured['seen'].value:.0%} of their "
        f"features captured, {half.captured['unseen'].value:.0%} of the others'; single views of the others right: "
        f"{half.single_view['unseen'].value:.0%}, without pretraining {none.single_view['unseen'].value:.0%}",
        fontsize=10,
    )
    return figure


def _draw_bars(panel: Axes, shown: Sequence[tuple[int, Estimate]], colour: str, line: str, label: str) -> None:
    """Draws a line with 95 % intervals, which are cut at what a share can be."""
    x, values = [each for each, _ in shown], [estimate.value for _, estimate in shown]
    low = [estimate.value - max(0.0, estimate.low) for _, estimate in shown]
    high = [min(1.0, estimate.high) - estimate.value for _, estimate in shown]
    panel.errorbar(
        x, values, yerr=[low, high], color=colour, linestyle=line, marker="o", markersize=4, capsize=2, label=label
    )


def draw_map(rows: list[list[Result]], limit: float) -> Figure:
    """Draws the teacher's setting over theta and m: captured features, features per kernel, single-view accuracy."""
    measures: dict[str, Callable[[Result], Estimate]] = {
        "captured features, share": lambda result: result.kernels["captured"],
        "kernels with exactly one feature": lambda result: result.kernels["kernels with one"],
        "fine-tuned accuracy, single-view": lambda result: result.accuracy["single-view"],
    }
    figure, grid = figures.panels(12.5, 4.6, 1, 3, sharey=True)
    for panel, (title, measure) in zip(grid[0], measures.items(), strict=True):
        values = np.array([[measure(cell).value for cell in row] for row in rows])
        image = panel.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if value < 0.55 else "black"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
        limit_row = np.interp(limit, MAP["theta"], range(len(rows)))
        panel.axhline(limit_row, color="#e8542c", linewidth=2, linestyle="--")
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="kernels per class, m", xticks=range(len(MAP["m"])), xticklabels=[f"{m:g}" for m in MAP["m"]])
    first = grid[0][0]
    chances = [f"{m:g}\n({1 - math.exp(-m / 2):.2f})" for m in MAP["m"]]
    first.set(
        xlabel="kernels per class, m (in brackets 1 - exp(-m/2))", xticklabels=chances, ylabel="mask ratio, theta"
    )
    first.set_yticks(range(len(rows)), [f"{theta:g}" for theta in MAP["theta"]])
    figure.colorbar(image, ax=grid)
    sides: dict[bool, list[float]] = {False: [0.0], True: [0.0]}  # captured with the most kernels, by mask ratio
    for theta, row in zip(MAP["theta"], rows, strict=True):
        sides[theta > limit].append(row[-1].kernels["captured"].value)
    found, lost = max(sides[False]), max(sides[True])
    figure.suptitle(
        f"Captured with {MAP['m'][-1]:g} kernels per class: up to {found:.0%} of the features below a mask ratio of "
        f"{limit:.2f}, {lost:.0%} above (dashed: there small kernels are predicted to shrink)",
        fontsize=10,
    )
    return figure
