"""`mrp lab multiview`: its words and what runs it."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.lab.words import print_table

if TYPE_CHECKING:
    from mrp.lab.estimate import Estimate
    from mrp.lab.multiview.compare import Result
    from mrp.lab.multiview.constants import Constants

HELP = "which features mask-reconstruction pretraining and supervised learning capture"
TOY = ("k=4", "d=27", "P=9", "m=10", "samples=100", "tests=100", "seeds=2", "steps=60", "steps_scratch=40")
PREDICTED = {
    "teacher": "all features, one or none per kernel, accuracy near 1 on both kinds",
    "patches": "the same",
    "scratch": "about one feature per class, half of the single-view samples wrong",
}


def words(parser: argparse.ArgumentParser) -> None:
    """The constants, and what to do with them."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value", help="constants, such as mu=0.3")
    parser.add_argument("--out", type=Path, default=Path("runs/lab/multiview"), metavar="OUT", help="a folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sweep", metavar="NAME", help="only all methods over one constant: mu, theta, ...")
    what.add_argument("--map", action="store_true", help="only the teacher's setting over theta and m")
    what.add_argument("--render", type=Path, metavar="FOLDER", help="write the data as images, for 'mrp pretrain'")
    what.add_argument("--constants", action="store_true", help="show all constants and their values")
    parser.add_argument("--toy", action="store_true", help="a comparison of a size for tests, too small for the theory")


def run(options: argparse.Namespace) -> None:
    """Run what was asked for, and say how long it took."""
    from mrp.lab.multiview.constants import read

    constants = read([*(TOY if options.toy else ()), *options.overrides])
    if options.constants:
        print("\n".join(f"{name}={value}" for name, value in constants.model_dump(mode="json").items()))
    elif options.render:
        from mrp.lab.multiview.render import render

        for split, num in render(constants, options.render).items():
            print(f"{options.render / split}: {num} images in {constants.k} classes")
    else:
        began = time.monotonic()
        options.out.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(constants, options.out)
        everything = not (options.sweep or options.map)
        if everything:
            experiment.compare()
        if options.sweep or (everything and not options.toy):
            experiment.sweep(options.sweep or "mu")
        if options.map or (everything and not options.toy):
            experiment.map()
        print(f"{time.monotonic() - began:.0f} s")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Runs a part of the experiment, prints its table, writes its numbers and pictures."""

    constants: Constants
    out: Path

    def compare(self) -> None:
        """All methods at these constants."""
        from mrp.lab.multiview import plots
        from mrp.lab.multiview.compare import METHODS, compare

        results = compare(self.constants)
        _print(self.constants, results, f"{self.constants.seeds} seeds, mean and 95 % interval")
        print("predicted: " + "; ".join(f"{METHODS[method]}: {PREDICTED[method]}" for method in results))
        plots.draw_correlations(self.constants, results, self.out / "correlations.png")
        plots.draw_capture(self.constants, results, self.out / "capture.png")
        self._write("results", {"methods": {method: _as_data(result) for method, result in results.items()}})
        print(f"in {self.out}/: results.json, correlations.png, capture.png")

    def sweep(self, name: str) -> None:
        """All methods over one constant."""
        from mrp.lab.multiview import plots
        from mrp.lab.multiview.compare import sweep, varied

        results = sweep(self.constants, name, _report)
        for value, methods in results.items():
            _print(varied(self.constants, **{name: value}), methods, f"{name} = {value:g}")
        plots.draw_sweep(self.constants, name, results, self.out / f"sweep_{name}.png")
        rows = [
            {"value": value} | {method: _as_data(result) for method, result in methods.items()}
            for value, methods in results.items()
        ]
        self._write(f"sweep_{name}", {"sweep": name, "values": rows})
        print(f"in {self.out}/: sweep_{name}.json, sweep_{name}.png")

    def map(self) -> None:
        """The teacher's setting over mask ratio and kernels per class."""
        from mrp.lab.multiview import plots
        from mrp.lab.multiview.compare import MAP, largest_ratio, map_pretraining

        rows, limit = map_pretraining(self.constants, _report), largest_ratio(self.constants)
        plots.draw_map(rows, limit, self.out / "map.png")
        cells = [
            {"theta": theta, "m": m} | _as_data(cell)
            for theta, row in zip(MAP["theta"], rows, strict=True)
            for m, cell in zip(MAP["m"], row, strict=True)
        ]
        self._write("map", {"largest_ratio": limit, "cells": cells})
        print(f"by the expected gradient small kernels shrink above theta = {limit:.2f}")
        print(f"in {self.out}/: map.json, map.png")

    def _write(self, name: str, data: dict[str, Any]) -> None:
        data = {"constants": self.constants.model_dump(mode="json")} | data
        (self.out / f"{name}.json").write_text(json.dumps(data, indent=1))


def _report(line: str) -> None:
    print(line, flush=True)


def _print(constants: Constants, results: dict[str, Result], title: str) -> None:
    from mrp.lab.multiview.compare import METHODS

    first = next(iter(results.values()))
    rows = [[name, *(str(result.kernels[name]) for result in results.values())] for name in first.kernels]
    for name in first.accuracy:
        label = (
            "accuracy, " + name if name != "total error" else f"error on the mixture (0.5 mu = {constants.mu / 2:g})"
        )
        rows.append([label, *(str(result.accuracy[name]) for result in results.values())])
    print_table(title, ["", *(METHODS[method] for method in results)], rows, width=110)


def _as_data(result: Result) -> dict[str, Any]:
    data: dict[str, Any] = {"kernels": _entries(result.kernels), "accuracy": _entries(result.accuracy)}
    return data | ({"captured": result.trace.captured} if result.trace.captured else {})


def _entries(estimates: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: {"mean": estimate.value, "half": estimate.error} for name, estimate in estimates.items()}
