"""Runs the parts of `mrp lab multiview`, prints their tables, and writes their numbers and pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mrp.lab import figures
from mrp.lab.multiview import compare as experiment
from mrp.lab.multiview import diversity, grid, plots
from mrp.lab.multiview.compare import MAP, METHODS, Result
from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.descent import OPTIMIZERS
from mrp.lab.words import print_table

PREDICTED = {
    "teacher": "all features, one or none per kernel, accuracy near 1 on both kinds",
    "patches": "the same",
    "scratch": "about one feature per class, half of the single-view samples wrong",
}


def compare(constants: Constants, out: Path) -> None:
    """Compares all methods."""
    results = experiment.compare(constants)
    _print(constants, results, f"{constants.seeds} seeds, mean and 95 % interval")
    print("predicted: " + "; ".join(f"{METHODS[method]}: {PREDICTED[method]}" for method in results))
    captured = {method: {"captured": result.trace.captured} for method, result in results.items()}
    methods = {method: result.as_data() | captured[method] for method, result in results.items()}
    pictures = {
        "correlations.png": plots.draw_correlations(constants, results),
        "capture.png": plots.draw_capture(constants, results),
    }
    figures.write(out, "results.json", _plain(constants) | {"methods": methods}, pictures)


def sweep(constants: Constants, name: str, out: Path) -> None:
    """Compares all methods over the values of one constant."""
    results = {}
    for value in experiment.sweep_values(name):
        varied = constants.varied(**{name: value})
        results[value] = experiment.compare(varied)
        _print(varied, results[value], f"{name} = {value:g}")
    rows = [
        {"value": value} | {method: result.as_data() for method, result in methods.items()}
        for value, methods in results.items()
    ]
    picture = {f"sweep_{name}.png": plots.draw_sweep(constants, name, results)}
    figures.write(out, f"sweep_{name}.json", _plain(constants) | {"sweep": name, "values": rows}, picture)


def objectives_by_optimizers(constants: Constants, out: Path) -> None:
    """Trains every objective with every optimizer; cells that are in the folder already are read."""
    cells = grid.cells(constants, out / "grid")
    for steps, title in enumerate(("shortest", "middle", "longest")):
        rows = [
            [name, *(_cell_text(cell, steps) for cell in cells[key].values())] for key, name in grid.OBJECTIVES.items()
        ]
        heading = f"captured share / single-view accuracy, {title} training"
        print_table(heading, ["", *OPTIMIZERS.values()], rows, width=120)
    figures.write(out, "grid.json", _plain(constants) | {"cells": cells}, {"grid.png": plots.draw_grid(cells)})


def _cell_text(cell: grid.Cell, length: int) -> str:
    row = cell["rows"][min(length, len(cell["rows"]) - 1)]
    if row.get("diverged"):
        return f"diverges within {row['steps']} steps"
    return f"{row['kernels']['captured']['mean']:.2f} / {row['accuracy']['single-view']['mean']:.2f} ({row['steps']})"


def pretrain_on_some_classes(constants: Constants, out: Path) -> None:
    """Pretrains on some of the classes and fine-tunes on all."""
    found = diversity.run(constants)
    rows = []
    for row in found:
        parts = (row.captured, row.single_view)
        cells = (" / ".join(str(part[name]) if name in part else "-" for name in ("seen", "unseen")) for part in parts)
        rows.append([METHODS[row.method], row.world, str(row.classes), str(row.tuned), *cells])
    columns = ["", "world", "classes", "steps tuned", "captured by pretraining", "single-view accuracy"]
    print_table("of seen / of unseen classes", columns, rows, width=130)
    data = _plain(constants) | {"rows": [asdict(row) for row in found]}
    figures.write(out, "diversity.json", data, {"diversity.png": plots.draw_diversity(constants, found)})


def map_pretraining(constants: Constants, out: Path) -> None:
    """Measures the teacher's setting over mask ratio (one row of the map per ratio) and kernels per class."""
    rows, limit = [], experiment.largest_ratio(constants)
    for theta in MAP["theta"]:
        varied = [constants.varied(theta=theta, m=m) for m in MAP["m"]]
        rows.append([experiment.compare(cell, ["teacher"])["teacher"] for cell in varied])
        print(f"theta = {theta:g}", flush=True)
    cells = [
        {"theta": theta, "m": m} | cell.as_data()
        for theta, row in zip(MAP["theta"], rows, strict=True)
        for m, cell in zip(MAP["m"], row, strict=True)
    ]
    print(f"by the expected gradient small kernels shrink above theta = {limit:.2f}")
    data = _plain(constants) | {"largest_ratio": limit, "cells": cells}
    figures.write(out, "map.json", data, {"map.png": plots.draw_map(rows, limit)})


def _print(constants: Constants, results: dict[str, Result], title: str) -> None:
    first = next(iter(results.values()))
    rows = [[name, *(str(result.kernels[name]) for result in results.values())] for name in first.kernels]
    for name in first.accuracy:
        label = (
            f"error on the mixture (0.5 mu = {constants.mu / 2:g})" if name == "total error" else f"accuracy, {name}"
        )
        rows.append([label, *(str(result.accuracy[name]) for result in results.values())])
    print_table(title, ["", *(METHODS[method] for method in results)], rows, width=110)


def _plain(constants: Constants) -> dict[str, Any]:
    return {"constants": constants.model_dump(mode="json")}
