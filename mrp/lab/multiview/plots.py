"""What `mrp lab multiview` draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mrp.lab.multiview.compare import MAP, METHODS, Result, largest_ratio
from mrp.lab.multiview.constants import Settings
from mrp.lab.multiview.measure import Spread

COLOURS = {"teacher": "#1f5f8b", "patches": "#3b7d3b", "scratch": "#c2571a"}
MARKERS = {"teacher": "o", "patches": "s", "scratch": "^"}
DPI = 120


def draw_correlations(settings: Settings, results: dict[str, Result], path: Path) -> None:
    """The inner products of kernels and features over training, a row a method, for the first seed."""
    pictures = {method: result.trace.pictures for method, result in results.items()}
    columns = max(len(steps) for steps in pictures.values())
    figure = Figure(figsize=(2.9 * columns + 1.2, 2.6 * len(pictures) + 0.6), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(pictures), columns, squeeze=False, sharex=True, sharey=True)
    for row, (method, steps) in zip(grid, pictures.items(), strict=True):
        for panel, (step, products) in zip(row, steps.items(), strict=False):
            shown = panel.imshow(
                _ordered(steps[max(steps)], products).T.numpy(), aspect="auto", cmap="RdBu_r",
                vmin=-2 * settings.t, vmax=2 * settings.t, interpolation="nearest",
            )  # fmt: skip
            panel.set_title(f"{METHODS[method]}, step {step}", fontsize=9)
        row[0].set_ylabel("feature (two a class)")
        row[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in grid[-1]:
        panel.set_xlabel("kernel, by the feature it ends with")
    figure.colorbar(shown, ax=grid, label="inner product of kernel and feature (t = linear part)", extend="both")
    figure.savefig(path, format="png")


def _ordered(last: Tensor, products: Tensor) -> Tensor:
    """Kernels in the order of the feature that each is nearest to in the end."""
    strongest = last.max(dim=1)
    order = sorted(
        range(len(last)), key=lambda kernel: (int(strongest.indices[kernel]), -float(strongest.values[kernel]))
    )
    return products[order]


def draw_capture(settings: Settings, results: dict[str, Result], path: Path) -> None:
    """Captured features against steps: every seed thin, their mean thick."""
    figure = Figure(figsize=(8, 4.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    groups = (("pretraining", ("teacher", "patches")), ("supervised training", ("scratch",)))
    for panel, (title, methods) in zip(panels, groups, strict=True):
        for method in methods:
            if method not in results:
                continue
            captured = results[method].trace.captured
            steps, shares = list(captured), np.array(list(captured.values())) * settings.features
            panel.plot(steps, shares, color=COLOURS[method], linewidth=0.7, alpha=0.4)
            panel.plot(steps, shares.mean(axis=1), color=COLOURS[method], linewidth=2.2, label=METHODS[method])
        panel.axhline(settings.features, color="#888888", linewidth=1, linestyle=":")
        panel.axhline(settings.k, color="#888888", linewidth=1, linestyle="--")
        panel.set(xlabel=f"step of {title}", ylim=(-0.3, 1.06 * settings.features))
        panel.legend(frameon=False, fontsize=9, loc="lower right")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(panel)
    panels[0].annotate("all 2k", (0, settings.features), xytext=(2, 3), textcoords="offset points", fontsize=8)
    panels[0].annotate("one a class", (0, settings.k), xytext=(2, 3), textcoords="offset points", fontsize=8)
    panels[0].set_ylabel(f"captured features of {settings.features}")
    figure.savefig(path, format="png")


def draw_sweep(settings: Settings, name: str, results: dict[float, dict[str, Result]], path: Path) -> None:
    """Captured features and accuracies against one constant; bars are 95 % intervals over seeds."""
    figure = Figure(figsize=(12, 3.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 4)
    parts: tuple[tuple[str, Callable[[Result], Spread]], ...] = (
        ("captured features, share", lambda result: result.kernels["captured"]),
        ("accuracy, multi-view samples", lambda result: result.accuracy["multi-view"]),
        ("accuracy, single-view samples", lambda result: result.accuracy["single-view"]),
        ("error on the mixture", lambda result: result.accuracy["total error"]),
    )
    for panel, (title, measure) in zip(panels, parts, strict=True):
        for index, method in enumerate(METHODS):
            spreads = {value: measure(found[method]) for value, found in results.items()}
            _bars(panel, method, spreads, shift=(index - 1) * 0.06)
        panel.set_title(title, fontsize=10)
        panel.set(xlabel=name, xticks=range(len(results)), xticklabels=[f"{value:g}" for value in results])
        if "error" in title:
            of_mu = [0.5 * value if name == "mu" else 0.5 * settings.mu for value in results]
            panel.plot(range(len(results)), of_mu, color="#555555", linestyle="--", linewidth=1, label="0.5 mu")
            panel.set_ylim(bottom=0)
        else:
            panel.set_ylim(-0.03, 1.05)
        _tidy(panel)
    panels[3].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png")


def _bars(panel: Axes, method: str, spreads: dict[float, Spread], shift: float) -> None:
    places = [place + shift for place in range(len(spreads))]
    means, halves = zip(*spreads.values(), strict=True)
    panel.errorbar(
        places, means, yerr=halves, color=COLOURS[method], marker=MARKERS[method], markersize=4.5, linewidth=1.6,
        capsize=2, label=METHODS[method],
    )  # fmt: skip


def draw_map(settings: Settings, rows: list[list[Result]], path: Path) -> None:
    """Where the teacher's setting captures all features, with few a kernel, and classifies single-view samples."""
    parts: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("captured features, share", lambda result: result.kernels["captured"].mean),
        ("kernels with exactly one feature", lambda result: result.kernels["kernels with one"].mean),
        ("fine-tuned accuracy, single-view", lambda result: result.accuracy["single-view"].mean),
    )
    figure = Figure(figsize=(12.5, 4.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    limit = _row_of(largest_ratio(settings))
    for panel, (title, measure) in zip(panels, parts, strict=True):
        values = np.array([[measure(cell) for cell in row] for row in rows])
        shown = panel.imshow(values, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=_ink(float(value)))
        panel.axhline(limit, color="#e8542c", linewidth=2, linestyle="--")
        panel.set_title(title, fontsize=10)
        panel.set(xlabel="kernels a class, m", xticks=range(len(MAP["m"])), xticklabels=[f"{m:g}" for m in MAP["m"]])
    labels = [f"{m:g}\n({1 - math.exp(-m / 2):.2f})" for m in MAP["m"]]
    panels[0].set(xlabel="kernels a class, m (in brackets 1 - exp(-m/2))", xticklabels=labels)
    panels[0].set(ylabel="mask ratio, theta", yticks=range(len(MAP["theta"])))
    panels[0].set_yticklabels([f"{theta:g}" for theta in MAP["theta"]])
    figure.colorbar(shown, ax=panels)
    text = f"dashed: above theta = {largest_ratio(settings):.2f} the expected gradient makes small kernels shrink"
    figure.suptitle(text, fontsize=9, color="#b03a16")
    figure.savefig(path, format="png")


def _row_of(theta: float) -> float:
    return float(np.interp(theta, MAP["theta"], range(len(MAP["theta"]))))


def _ink(value: float) -> str:
    return "white" if value < 0.55 else "black"


def _tidy(panel: Axes) -> None:
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
