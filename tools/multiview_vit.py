"""Real networks on images of which each class has two features: what is learned of them, and what maps cover of them.

    python tools/multiview_vit.py [--planted DATA] [--methods mae umae data2vec] [--optimizers adamw sgd] [k=4 ...]

Makes the images, pretrains a small ViT by each method (AdamW), fine-tunes each by the first of the optimizers, trains
from scratch by each optimizer, and counts what is right of images with both features, and of images with only one.
The images are those of the data model of 'mrp lab multiview'; or, with --planted, one half of each is half a photograph
of DATA (a folder with train/ and test/ of class folders) and the other holds a pattern that follows the class. There
the tool also measures what class-activation maps cover of both. The same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import planted
import study
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mrp import api
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.open import open_source
from mrp.lab import figures
from mrp.lab.claims.multiview import ALONE
from mrp.lab.coverage.experiment import covered
from mrp.lab.estimate import Estimate
from mrp.lab.multiview.constants import Constants, read
from mrp.lab.multiview.render import render
from mrp.report.looks import eigen_cam, gradient_cam
from mrp.run import load
from mrp.train import train

METHODS = {
    "mae": ["objective.mask_ratio=0.6"],
    "umae": ["objective.mask_ratio=0.6", "objective.uniformity=0.01"],
    "data2vec": ["objective={name: data2vec, mask_ratio: 0.6, smallest_block: 1, layers: 3, teacher: {decay: 0.99}}"],
}
OPTIMIZERS = {"adamw": "optim.lr=1e-3", "sgd": "optim={name: sgd, lr: 0.05}"}  # of classification
TESTS = {False: ("test_multi", "test_single"), True: ("test_multi", "test_pattern", "test_photograph")}
NETWORK = {False: "width: 64, depth: 4", True: "width: 48, depth: 3"}
MAPPED = 200  # images whose class-activation maps are looked at

Classified = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One seed: its constants, the folder of its runs, and how long they train."""

    constants: Constants
    folder: Path
    pretraining: int  # epochs
    training: int
    planted: Mapping[str, planted.Images] | None

    def pretrain(self, method: str) -> None:
        """One method on the unlabelled images."""
        words = [*self._shared("train"), *METHODS[method], OPTIMIZERS["adamw"], *_length(self.pretraining)]
        train(load("demo", words), self.folder / method)

    def classify(self, start: str, optimizer: str) -> Classified:
        """Fine-tune, or train from scratch, by the same recipe; what comes of it is kept in the run's folder."""
        folder = self.folder / f"classify_{start.replace(', ', '_').replace(' ', '_')}_{optimizer}"
        kept = folder / "classified.json"
        if kept.exists():
            return dict(json.loads(kept.read_text()))
        words = [
            *self._shared("train_photograph" if start == ALONE else "train"), OPTIMIZERS[optimizer],
            *_length(self.training), f"objective={{name: classify, classes: {self.constants.k}, pool: mean}}",
        ]  # fmt: skip
        if start in METHODS:
            words.append(f"init={self.folder / start}")
        train(load("demo", words, folder), folder)
        model = api.load(folder)
        tests = TESTS[self.planted is not None]
        found: Classified = {"accuracy": {test: accuracy(model, self.folder / "images" / test) for test in tests}}
        if self.planted:
            found["maps"] = coverage(model, self.planted["test_multi"])
        kept.write_text(json.dumps(found, indent=1))
        return found

    def _shared(self, split: str) -> list[str]:
        """The data, a small network, and no checkpoints on the way."""
        images, side = self.folder / "images", math.isqrt(self.constants.d // 3)
        batch = max(1, min(100, self.constants.samples // 8))  # at least eight steps per epoch
        size = side * math.isqrt(self.constants.P)
        return [
            f"data={{train: {images / split}, test: {images / 'test_multi'}, size: {size}, channels: 3, mean: 0.5, "
            "std: 0.25, augment: resize}",
            f"backbone={{{NETWORK[self.planted is not None]}, heads: 4, patch: {side}, positions: sincos}}",
            f"batch={batch}", f"seed={self.constants.seed}", "diagnose.every=0 steps",
            "checkpoint={every: 1000 epochs, keep: 1, asynchronous: false}",
        ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Every seed, every start, every optimizer; a table and results.json after each seed."""
    parser = study.command_line(__doc__)
    parser.add_argument("constants", nargs="*", default=[], metavar="name=value", help="of 'mrp lab multiview'")
    parser.add_argument("--planted", type=Path, metavar="DATA", help="photographs, of which one half is taken")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=["adamw"])
    parser.add_argument("--out", type=Path, default=Path("runs/multiview_vit"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining", type=int, default=40, metavar="EPOCHS")
    parser.add_argument("--training", type=int, default=20, metavar="EPOCHS")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, list[Classified]]] = {optimizer: {"scratch": []} for optimizer in options.optimizers}
    for start in (*options.methods, *([ALONE] if options.planted else [])):
        found[options.optimizers[0]][start] = []
    for seed in range(options.seeds):
        constants = read([*options.constants, f"seed={seed}"])
        images = planted.draw(constants, options.planted) if options.planted else None
        plan = Plan(constants, options.out / f"seed{seed}", options.pretraining, options.training, images)
        if not (plan.folder / "images").exists():
            if images is None:
                render(constants, plan.folder / "images")
            else:
                planted.save(images, plan.folder / "images")
        for method in options.methods:
            plan.pretrain(method)
        for optimizer, by_start in found.items():
            for start, seeds in by_start.items():
                seeds.append(plan.classify(start, optimizer))
                print(f"seed {seed}, {start}, {optimizer}:", _shown(seeds[-1]["accuracy"]), flush=True)
        size = {
            "epochs of pretraining": options.pretraining,
            "epochs of training": options.training,
            "images": constants.samples,
        }
        results = {"images": "planted" if options.planted else "rendered", "size": size, "found": found}
        (options.out / "results.json").write_text(json.dumps(results, indent=1))
    if options.seeds > 1:
        print(table(found))
        if options.planted:
            draw(found, constants).savefig(options.out / "planted.png")


def table(found: Mapping[str, Mapping[str, list[Classified]]]) -> str:
    """Means over seeds with their intervals, as Markdown."""
    rows: list[list[str]] = []
    for optimizer, by_start in found.items():
        for start, seeds in by_start.items():
            flat = [{name: value for part in seed.values() for name, value in part.items()} for seed in seeds]
            rows = rows or [["", *flat[0]], ["---"] * (len(flat[0]) + 1)]
            columns = (torch.tensor([seed[name] for seed in flat]) for name in flat[0])
            rows.append([f"{start}, {optimizer}", *(str(Estimate.over_seeds(column)) for column in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(found: Mapping[str, Mapping[str, list[Classified]]], constants: Constants) -> Figure:
    """What is right with both halves and with one of them blanked, and what maps of the class cover."""
    rows = {f"{start}\n{optimizer}": seeds for optimizer, starts in found.items() for start, seeds in starts.items()}
    figure, grid = figures.panels(15, 4.6, 1, 3, width_ratios=[1.6, 1.6, 1])
    panels = {
        "accuracy (dotted: chance)": (
            "accuracy", TESTS[True], ("both halves", "the pattern alone", "the photograph alone")
        ),
        "covered by maps of the class, share": (
            "maps", ("covered, pattern", "covered, photograph", "covered, noise"), ("pattern", "photograph", "noise")
        ),
        "features found, of 2": (
            "maps", ("features found, of 2", "Eigen-CAM, features found, of 2"), ("maps of the class", "Eigen-CAM"),
        ),
    }  # fmt: skip
    for panel, (title, (part, names, labels)) in zip(grid[0], panels.items(), strict=True):
        width = 0.8 / len(names)
        for place, (name, label) in enumerate(zip(names, labels, strict=True)):
            bars = [Estimate.over_seeds(torch.tensor([seed[part][name] for seed in seeds])) for seeds in rows.values()]
            panel.bar(
                [index + width * (place - (len(names) - 1) / 2) for index in range(len(bars))],
                [bar.value for bar in bars], yerr=[bar.error for bar in bars], width=0.94 * width, capsize=2,
                color=figures.COLOURS[place], label=label,
            )  # fmt: skip
        panel.set_xticks(range(len(rows)), [name.replace(" ", "\n") for name in rows], fontsize=7)
        panel.set_title(f"{title}\npredicted: MAE, data2vec above scratch", fontsize=9)
        panel.set_ylim(0, 1.2 * panel.get_ylim()[1])
        panel.legend(frameon=False, fontsize=7, loc="upper center", ncols=len(names))
        figures.tidy(panel)
    grid[0][0].axhline(1 / constants.k, color="#555555", linestyle=":", linewidth=1)
    alone = {name: Estimate.over_seeds(torch.tensor([seed["accuracy"][TESTS[True][2]] for seed in seeds])).value
             for name, seeds in rows.items()}  # fmt: skip
    shown = ", ".join(f"{name.replace(chr(10), ' (')}) {share:.2f}" for name, share in alone.items())
    figure.suptitle(f"Right of the photographs, shown alone: {shown}", fontsize=10)
    return figure


def _shown(shares: Mapping[str, float]) -> str:
    return " ".join(f"{name} {share:.3f}" for name, share in shares.items())


def _length(epochs: int) -> list[str]:
    return [f"length={epochs} epochs", f"optim.warmup={epochs / 10} epochs"]


def accuracy(model: api.Model, images: Path) -> float:
    """The share of images that a trained classifier gets right."""
    source, view = open_source(str(images), "train"), View(model.run.data, train=False)
    right = 0.0
    with torch.no_grad():
        for batch in EvalLoader(source, view, batch=1000, rank=0, world=1, workers=0, pin_memory=False):
            assert batch.valid is not None
            right += float(model.module(batch).per_sample["correct"][batch.valid].sum())
    return right / len(source)


def coverage(model: api.Model, images: planted.Images) -> dict[str, float]:
    """What both kinds of class-activation maps cover of the two features, and of the noise around the pattern."""
    pixels, labels = images.pixels[:MAPPED], images.labels[:MAPPED]
    found: dict[str, float] = {}
    kinds = {"": gradient_cam(model, pixels, labels).maps, "Eigen-CAM, ": eigen_cam(model, pixels)}
    for kind, maps in kinds.items():
        found |= {f"{kind}{name}": value for name, value in on_regions(torch.from_numpy(maps), images.regions).items()}
    return found


def on_regions(maps: Tensor, regions: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean covered share of each region, and of what is left; an empty map covers nothing."""
    areas = covered(maps.flatten(1))
    features = {name: region[: len(maps)].flatten(1) for name, region in regions.items()}
    ground = ~torch.stack(list(features.values())).any(0)
    shares = {name: (areas & each).sum(1) / each.sum(1) for name, each in (features | {"noise": ground}).items()}
    found = {f"covered, {name}": float(share.mean()) for name, share in shares.items()}
    number = torch.stack([shares[name] > 0 for name in features]).sum(0)
    return found | {"features found, of 2": float(number.double().mean())}


if __name__ == "__main__":
    study.run(main)
