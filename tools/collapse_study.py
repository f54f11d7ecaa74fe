"""Does a weight on uniformity end the collapse of MAE's features, or does the optimizer: a grid of runs on digits.

    python tools/collapse_study.py [--seeds 3] [--steps 480] [--weights 0 .001 .01 .1] [--out runs/lab/collapse]

Trains MAE with every weight of U-MAE's penalty (lambda) by AdamW and by Muon, and measures the class token and the mean
of the patch tokens at every checkpoint: eigenvalues, effective rank, uniformity, kNN and a linear classifier. Run
again, it goes on where it stopped. `mrp lab claims` reads the results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import study
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mrp import api
from mrp.batch import Batch
from mrp.build import open_source
from mrp.checkpoint import checkpoints
from mrp.config import ConfigError
from mrp.data.order import keys
from mrp.evaluate import geometry, logistic, neighbours
from mrp.evaluate.readout import Readout
from mrp.evaluate.split import split
from mrp.files import write_atomically
from mrp.lab import figures
from mrp.lab.images import read
from mrp.run import load
from mrp.train import train

RECIPES = {"adamw": ["demo"], "muon": ["mae_muon_tiny_digits", "optim.arithmetic=fp32"]}
TITLES = {"adamw": "AdamW", "muon": "Muon"}
SMALL = ["backbone.width=64", "backbone.depth=2", "objective.decoder={width: 48, depth: 1, heads: 4}", "batch=64"]
WEIGHTS = (0.0, 0.001, 0.01, 0.1)
LINES, MARKS = {"adamw": "-", "muon": "--"}, {"adamw": "o", "muon": "s"}
TOKENS = {"class": "class token", "mean": "mean token"}
MEASURED = "measured.json"  # in a run's folder
ROUNDING = 1e-9  # eigenvalues below it are not drawn
K = 20  # neighbours
STRENGTH = 1e-2  # of the linear classifier's penalty, the same everywhere: nothing is chosen
MEASURES = {
    "rank_me": "effective rank (RankMe)",
    "uniformity": "uniformity (1: collapsed)",
    "knn": "kNN %",
    "linear": "linear %",
}


@dataclass(frozen=True, slots=True)
class Options:
    """The grid, and how long each run trains."""

    seeds: int = 3
    steps: int = 480
    weights: tuple[float, ...] = WEIGHTS
    checkpoints: int = 4


def grid(options: Options, out: Path) -> dict[str, Any]:
    """Trains and measures what has not been yet, seed by seed; returns all that was measured in this folder."""
    if not 0 < options.checkpoints <= options.steps:
        raise ConfigError(f"--checkpoints: {options.checkpoints} was given; allowed: 1 to {options.steps} (--steps)")
    for seed in range(options.seeds):
        for weight in options.weights:
            for optimizer in RECIPES:
                folder = out / f"{optimizer}-{weight:g}-{seed}"
                if not (folder / MEASURED).exists():
                    measure(folder, optimizer, weight, seed, options)
                print(f"{optimizer}, lambda {weight:g}, seed {seed}: {summary(rows_of(folder))}", flush=True)
    runs = [rows_of(kept.parent) for kept in sorted(out.glob(f"*/{MEASURED}"))]
    lengths = {max(row["step"] for row in run) for run in runs}
    if lengths != {options.steps}:
        raise ConfigError(f"{out}: holds runs of {sorted(lengths)} steps; give one length, or another --out")
    rows = [row for run in runs for row in run]
    return {"options": asdict(options) | {"weights": sorted({row["weight"] for row in rows})}, "rows": rows}


def measure(folder: Path, optimizer: str, weight: float, seed: int, options: Options) -> None:
    """Trains a run as far as it is not, and measures every checkpoint under both tokens."""
    recipe, *words = RECIPES[optimizer]
    every = options.steps // options.checkpoints
    words += [
        *SMALL, f"length={options.steps} steps", f"optim.warmup={options.steps // 10} steps", f"seed={seed}",
        f"objective.uniformity={weight}", f"checkpoint={{every: {every} steps, keep: 1000, asynchronous: false}}",
        "diagnose.every=0 steps",
    ]  # fmt: skip
    train(load(recipe, words), folder)
    models = [api.untrained(folder)] + [api.load(folder, step=each.step) for each in checkpoints.listed(folder)]
    write_atomically(folder / MEASURED, json.dumps([row for model in models for row in of_model(model)]))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What was measured of one run, whose folder's name says which it is."""
    optimizer, _, rest = folder.name.partition("-")
    weight, _, seed = rest.rpartition("-")
    about = {"optimizer": optimizer, "weight": float(weight), "seed": int(seed)}
    return [about | row for row in json.loads((folder / MEASURED).read_text())]


def of_model(model: api.Model) -> list[dict[str, Any]]:
    """What the features of each token are like, and what they are good for."""
    (train_tokens, train_labels), (tokens, labels) = (features_of(model, part) for part in ("train", "test"))
    parts = split(train_labels, torch.arange(len(train_labels)))
    rows = []
    for name, fitted, features in zip(TOKENS, train_tokens, tokens, strict=True):
        (answers,) = neighbours.predict(fitted, train_labels, features, [K])
        linear = logistic.train(fitted, train_labels, parts, [STRENGTH])
        unit = torch.nn.functional.normalize(features.double(), dim=1)
        rows.append(
            {
                "step": model.step,
                "token": name,
                "rank_me": geometry.rank_me(features),
                "uniformity": geometry.gram_uniformity(features),
                "knn": 100 * float((answers == labels).double().mean()),
                "linear": 100 * float((linear.predict(features) == labels).double().mean()),
                "eigenvalues": torch.linalg.eigvalsh(unit.T @ unit / len(unit)).clamp_min(0).flip(0).tolist(),
            }
        )
    return rows


@torch.no_grad()
def features_of(model: api.Model, part: Literal["train", "test"]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Each token of every image of a part of the data, and the labels."""
    source = open_source(model.run, part)
    images, labels = read(source, model.run.data, part, len(source))
    numbers = torch.from_numpy(keys(0, 0, torch.arange(len(images)).numpy()))
    readout = replace(Readout.last(model.module, layers=1), own_features=None)
    columns = readout(model.objective, Batch(model.module.prepare(images), numbers))
    return columns.split(list(readout.widths.values()), dim=1), labels


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last row of each token, in words."""
    short = {"rank_me": "rank", "knn": "kNN", "linear": "linear"}
    return "; ".join(
        ", ".join([f"{row['token']} token", *(f"{name} {row[key]:.1f}" for key, name in short.items())])
        for row in rows[-len(TOKENS) :]
    )


def draw(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Curves over training, the last spectra, and rank against accuracy."""
    weights = result["options"]["weights"]
    curves, grid = figures.panels(15, 7, len(TOKENS), len(MEASURES), sharex=True)
    for panels, token in zip(grid, TOKENS, strict=True):
        for panel, measure in zip(panels, MEASURES, strict=True):
            for optimizer, weight, colour in styles(weights):
                rows = chosen(result, token=token, optimizer=optimizer, weight=weight)
                steps = sorted({row["step"] for row in rows})
                means = [fmean(row[measure] for row in rows if row["step"] == step) for step in steps]
                name = f"{TITLES[optimizer]}, lambda {weight:g}"
                panel.plot(steps, means, color=colour, linestyle=LINES[optimizer], label=name)
            panel.set_title(f"{TOKENS[token]}: {MEASURES[measure]}", fontsize=10)
            figures.tidy(panel)
    for panel in grid[-1]:
        panel.set_xlabel("step")
    curves.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    last = max(row["step"] for row in result["rows"])
    found = ", ".join(
        f"{title} {_final_rank(result, optimizer, weights[0]):.1f} to {_final_rank(result, optimizer, weights[-1]):.1f}"
        for optimizer, title in TITLES.items()
    )
    span = f"lambda {weights[0]:g} to {weights[-1]:g}"
    curves.suptitle(f"Effective rank of the class token at the end, {span}: {found}", fontsize=11)
    ends, (panels,) = figures.panels(15, 4.2, 1, 2 * len(TOKENS))
    for number, token in enumerate(TOKENS):
        for optimizer, weight, colour in styles(weights):
            rows = chosen(result, token=token, optimizer=optimizer, weight=weight, step=last)
            spectrum = torch.tensor([row["eigenvalues"] for row in rows]).mean(0)
            spectrum = spectrum[spectrum > ROUNDING]
            panels[number].semilogy(range(1, len(spectrum) + 1), spectrum, color=colour, linestyle=LINES[optimizer])
            panels[len(TOKENS) + number].plot(
                [row["rank_me"] for row in rows], [row["knn"] for row in rows], MARKS[optimizer], color=colour,
                label=f"{TITLES[optimizer]}, lambda {weight:g}",
            )  # fmt: skip
        label(panels[number], f"{TOKENS[token]}: eigenvalues", "number", "share")
        label(panels[len(TOKENS) + number], f"{TOKENS[token]}: rank and accuracy", "effective rank", "kNN %")
    ends.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    ends.suptitle(f"At the end (step {last}): dashed and squares are Muon; a point is one seed", fontsize=11)
    return {"curves.png": curves, "ends.png": ends}


def _final_rank(result: Mapping[str, Any], optimizer: str, weight: float) -> float:
    last, token = max(row["step"] for row in result["rows"]), next(iter(TOKENS))
    rows = chosen(result, token=token, optimizer=optimizer, weight=weight, step=last)
    return fmean(row["rank_me"] for row in rows)


def styles(weights: Sequence[float]) -> list[tuple[str, float, str]]:
    """Every cell of the grid, with a colour for its weight."""
    return [
        (optimizer, weight, colour)
        for optimizer in RECIPES
        for weight, colour in zip(weights, figures.COLOURS, strict=False)
    ]


def label(panel: Axes, title: str, x: str, y: str) -> None:
    """The words around a panel."""
    panel.set_title(title, fontsize=10)
    panel.set(xlabel=x, ylabel=y)
    figures.tidy(panel)


def chosen(result: Mapping[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows with these values."""
    return [row for row in result["rows"] if all(row[key] == value for key, value in wanted.items())]


def main(arguments: list[str] | None = None) -> None:
    """Goes through the grid, and writes the numbers and the pictures."""
    words = study.command_line(__doc__)
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--steps", type=int, default=480)
    words.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    words.add_argument("--checkpoints", type=int, default=4, help="that are measured, beside the start")
    words.add_argument("--out", type=Path, default=Path("runs/lab/collapse"))
    given = words.parse_args(arguments)
    result = grid(Options(given.seeds, given.steps, tuple(given.weights), given.checkpoints), given.out)
    figures.write(given.out, "results.json", result, draw(result))


if __name__ == "__main__":
    study.run(main)
