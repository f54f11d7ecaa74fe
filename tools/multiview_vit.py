"""The real networks on the data of `mrp lab multiview`: what pretraining and supervised learning learn there.

    python tools/multiview_vit.py [--out DIR] [--seeds 3] [--pretraining 40] [--training 20] [name=value ...]

Draws the data as images, pretrains a tiny ViT by MAE, U-MAE and data2vec, fine-tunes each, trains one from scratch, and
counts errors on multi-view and on single-view images. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from mrp import api
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.open import open_source
from mrp.lab.estimate import Estimate
from mrp.lab.multiview.constants import Constants, read
from mrp.lab.multiview.render import render
from mrp.run import load
from mrp.train import train

METHODS = {
    "mae": ["objective.mask_ratio=0.6"],
    "umae": ["objective.mask_ratio=0.6", "objective.uniformity=0.01"],
    "data2vec": ["objective={name: data2vec, mask_ratio: 0.6, smallest_block: 1, layers: 3, teacher: {decay: 0.99}}"],
}
TESTS = ("test_multi", "test_single")


@dataclass(frozen=True)
class Plan:
    """One seed: its constants, the folder of its runs, and how long they train."""

    constants: Constants
    folder: Path
    pretraining: int  # epochs
    training: int

    def pretrain(self, method: str) -> None:
        """One method on the unlabelled images."""
        length = _length(self.pretraining)
        train(load("demo", [*self._shared(), *METHODS[method], *length]), self.folder / method)

    def classify(self, start: str) -> list[float]:
        """Fine-tune, or train from scratch, by the same recipe; the accuracy on each kind of image."""
        words = [
            *self._shared(), *_length(self.training),
            f"objective={{name: classify, classes: {self.constants.k}, pool: mean}}",
        ]  # fmt: skip
        if start != "scratch":
            words.append(f"init={self.folder / start}")
        folder = self.folder / f"classify_{start}"
        train(load("demo", words, folder), folder)
        return [accuracy(folder, self.folder / "images" / test) for test in TESTS]

    def _shared(self) -> list[str]:
        """The data, a small network, and no checkpoints on the way."""
        images, side = self.folder / "images", math.isqrt(self.constants.d // 3)
        size = side * math.isqrt(self.constants.P)
        return [
            f"data={{train: {images / 'train'}, test: {images / TESTS[1]}, size: {size}, channels: 3, mean: 0.5, "
            "std: 0.25, augment: resize}",
            f"backbone={{width: 64, depth: 4, heads: 4, patch: {side}, positions: sincos}}",
            "batch=50", f"seed={self.constants.seed}", "checkpoint={every: 1000 epochs, keep: 1}", "optim.lr=1e-3",
        ]  # fmt: skip


def main() -> None:
    """Every seed, every method; a table and results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("constants", nargs="*", metavar="name=value", help="of 'mrp lab multiview'")
    parser.add_argument("--out", type=Path, default=Path("runs/multiview_vit"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining", type=int, default=40, metavar="EPOCHS")
    parser.add_argument("--training", type=int, default=20, metavar="EPOCHS")
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {}
    for seed in range(options.seeds):
        constants = read([*options.constants, f"seed={seed}"])
        plan = Plan(constants, options.out / f"seed{seed}", options.pretraining, options.training)
        if not (plan.folder / "images").exists():
            render(constants, plan.folder / "images")
        for start in ("scratch", *METHODS):
            if start in METHODS:
                plan.pretrain(start)
            rows.setdefault(start, []).append(plan.classify(start))
            print(
                f"seed {seed}, {start}:",
                *(f"{test} {share:.3f}" for test, share in zip(TESTS, rows[start][-1], strict=True)),
            )
    size = {
        "epochs of pretraining": options.pretraining,
        "epochs of training": options.training,
        "images": constants.samples,
    }
    results = {"size": size, "tests": TESTS, "accuracy": rows}
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    if options.seeds > 1:
        for start, shares in rows.items():
            means = [Estimate.over_seeds(column) for column in torch.tensor(shares).T]
            print(
                f"{start:10}",
                *(f"{test} {mean}" for test, mean in zip(TESTS, means, strict=True)),
            )


def _length(epochs: int) -> list[str]:
    return [f"length={epochs} epochs", f"optim.warmup={epochs / 10} epochs"]


def accuracy(folder: Path, images: Path) -> float:
    """The share of images that a trained classifier gets right."""
    model = api.load(folder)
    source, view = open_source(str(images), "train"), View(model.run.data, train=False)
    right = 0.0
    with torch.no_grad():
        for batch in EvalLoader(source, view, batch=500, rank=0, world=1, workers=0, pin_memory=False):
            assert batch.valid is not None
            right += float(model.module(batch).per_sample["correct"][batch.valid].sum())
    return right / len(source)


if __name__ == "__main__":
    main()
