"""`mrp lab multiview`: its words and what runs it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrp.lab.multiview.compare import Result
    from mrp.lab.multiview.constants import Settings

HELP = "which features mask-reconstruction pretraining and supervised learning capture"
TOY = ("k=4", "d=27", "P=9", "m=10", "samples=100", "tests=100", "seeds=2", "steps=60", "steps_scratch=40")
_PREDICTED = {
    "teacher": "all features, one or none a kernel, accuracy near 1 on both kinds",
    "patches": "the same",
    "scratch": "about one feature a class, half of the single-view samples wrong",
}


def words(parser: argparse.ArgumentParser) -> None:
    """Constants, and what to do with them."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value", help="constants, such as mu=0.3")
    parser.add_argument("--out", type=Path, default=Path("runs/lab/multiview"), metavar="OUT", help="a folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sweep", metavar="NAME", help="only all methods over one constant: mu, theta, ...")
    what.add_argument("--map", action="store_true", help="only the teacher's setting over theta and m")
    what.add_argument("--render", type=Path, metavar="FOLDER", help="write the data as images, for 'mrp pretrain'")
    what.add_argument("--constants", action="store_true", help="show all constants and their values")
    parser.add_argument("--toy", action="store_true", help="a comparison of a size for tests, too small for the theory")


def run(options: argparse.Namespace) -> None:
    """Run what was asked, and say how long it took."""
    from mrp.lab.multiview import constants as multiview_settings

    settings = multiview_settings.read([*(TOY if options.toy else ()), *options.overrides])
    began = time.monotonic()
    if options.constants:
        print("\n".join(f"{name}={value}" for name, value in settings.model_dump(mode="json").items()))
        return
    if options.render:
        _render(settings, options.render)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.sweep:
        _sweep(settings, options.sweep, options.out)
    if options.map:
        _map(settings, options.out)
    if not (options.sweep or options.map):
        _compare(settings, options.out)
        if not options.toy:
            _sweep(settings, "mu", options.out)
            _map(settings, options.out)
    print(f"{time.monotonic() - began:.0f} s")


def _compare(settings: Settings, out: Path) -> None:
    from mrp.lab.multiview import compare as multiview
    from mrp.lab.multiview import plots as multiview_plots

    results = multiview.compare(settings)
    _show(settings, results)
    data = {method: _as_data(result) for method, result in results.items()}
    multiview_plots.draw_correlations(settings, results, out / "correlations.png")
    multiview_plots.draw_capture(settings, results, out / "capture.png")
    _write(settings, {"methods": data}, out / "results.json")
    print(f"in {out}/: results.json, correlations.png, capture.png")


def _sweep(settings: Settings, name: str, out: Path) -> None:
    from mrp.lab.multiview import compare as multiview
    from mrp.lab.multiview import plots as multiview_plots

    results = multiview.sweep(settings, name, lambda line: print(line, flush=True))
    for value, found in results.items():
        _show(multiview.varied(settings, **{name: value}), found, f"{name} = {value:g}")
    data = [{"value": value} | {key: _as_data(one) for key, one in found.items()} for value, found in results.items()]
    multiview_plots.draw_sweep(settings, name, results, out / f"sweep_{name}.png")
    _write(settings, {"sweep": name, "values": data}, out / f"sweep_{name}.json")
    print(f"in {out}/: sweep_{name}.json, sweep_{name}.png")


def _map(settings: Settings, out: Path) -> None:
    from mrp.lab.multiview import compare as multiview
    from mrp.lab.multiview import plots as multiview_plots

    rows = multiview.map_pretraining(settings, lambda line: print(line, flush=True))
    cells = [
        {"theta": theta, "m": m} | _as_data(cell)
        for theta, row in zip(multiview.MAP["theta"], rows, strict=True)
        for m, cell in zip(multiview.MAP["m"], row, strict=True)
    ]
    limit = multiview.largest_ratio(settings)
    multiview_plots.draw_map(settings, rows, out / "map.png")
    _write(settings, {"largest_ratio": limit, "cells": cells}, out / "map.json")
    print(f"by the expected gradient small kernels shrink above theta = {limit:.2f}")
    print(f"in {out}/: map.json, map.png")


def _render(settings: Settings, folder: Path) -> None:
    from mrp.lab.multiview import render as multiview_render

    for split, num in multiview_render.render(settings, folder).items():
        print(f"{folder / split}: {num} images in {settings.k} classes")


def _show(settings: Settings, results: dict[str, Result], title: str = "") -> None:
    from rich.console import Console
    from rich.table import Table

    from mrp.lab.multiview.compare import METHODS

    table = Table(title=title or f"{settings.seeds} seeds, mean and 95 % interval", title_justify="left")
    table.add_column("")
    for method in results:
        table.add_column(METHODS[method], justify="right")
    first = next(iter(results.values()))
    for name in first.kernels:
        table.add_row(name, *(_plain(result.kernels[name]) for result in results.values()))
    table.add_section()
    for name in first.accuracy:
        row = "accuracy, " + name if name != "total error" else f"error on the mixture (0.5 mu = {settings.mu / 2:g})"
        table.add_row(row, *(_plain(result.accuracy[name]) for result in results.values()))
    Console(width=110).print(table)
    if not title:
        print("predicted: " + "; ".join(f"{METHODS[method]}: {_PREDICTED[method]}" for method in results))


def _plain(spread: tuple[float, float]) -> str:
    return f"{spread[0]:.3f} +- {spread[1]:.3f}"


def _as_data(result: Result) -> dict[str, Any]:
    spreads = {"kernels": result.kernels, "accuracy": result.accuracy}
    data: dict[str, Any] = {
        part: {name: spread._asdict() for name, spread in found.items()} for part, found in spreads.items()
    }
    return data | ({"captured": result.trace.captured} if result.trace.captured else {})


def _write(settings: Settings, data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps({"constants": settings.model_dump(mode="json")} | data, indent=1))
