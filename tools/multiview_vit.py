"""The real networks on the data of `mrp lab multiview`: what pretraining and supervised learning learn there.

    python tools/multiview_vit.py [--out DIR] [--seeds 3] [--pretraining 40] [--training 20] [name=value ...]

Draws the data as images, pretrains a tiny ViT by MAE, U-MAE and data2vec, fine-tunes each, trains one from scratch, and
counts errors on multi-view and on single-view images. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from mrp import api
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.sources import open_source
from mrp.lab.multiview_measure import Spread
from mrp.lab.multiview_render import render
from mrp.lab.multiview_settings import read
from mrp.run import load
from mrp.train.loop import train

METHODS = {
    "mae": ["objective.mask_ratio=0.6"],
    "umae": ["objective.mask_ratio=0.6", "objective.uniformity=0.01"],
    "data2vec": ["objective={name: data2vec, mask_ratio: 0.6, smallest_block: 1, layers: 3, teacher: {decay: 0.99}}"],
}
TESTS = ("test_multi", "test_single")


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
        place = options.out / f"seed{seed}"
        settings = read([*options.constants, f"seed={seed}"])
        if not (place / "images").exists():
            render(settings, place / "images")
        for method, words in METHODS.items():
            pretrain(
                place,
                method,
                seed,
                [*words, f"length={options.pretraining} epochs", f"optim.warmup={options.pretraining / 10} epochs"],
            )
        for start in (*METHODS, "scratch"):
            found = classify(place, start, settings.k, seed, options.training)
            rows.setdefault(start, []).append(found)
            print(seed, start, *(f"{name} {value:.3f}" for name, value in zip(TESTS, found, strict=True)), flush=True)
    table = {start: [Spread.of(one)._asdict() for one in torch.tensor(found).T] for start, found in rows.items()}
    (options.out / "results.json").write_text(json.dumps({"tests": TESTS, "rows": rows, "over seeds": table}, indent=1))
    for start, spreads in table.items():
        print(f"{start:10}", *(f"{one['mean']:.3f} +- {one['half']:.3f}" for one in spreads))


def common(place: Path, seed: int) -> list[str]:
    """What all runs share: the size of the images, a small network, and no checkpoints on the way."""
    images = place / "images"
    return [
        f"data={{train: {images / 'train'}, test: {images / TESTS[1]}, size: 16, channels: 3, mean: 0.5, std: 0.25, "
        "augment: resize}",
        "backbone={width: 64, depth: 4, heads: 4, patch: 4, positions: sincos}",
        "batch=100", f"seed={seed}", "checkpoint={every: 1000 epochs, keep: 1}",
    ]  # fmt: skip


def pretrain(place: Path, method: str, seed: int, words: list[str]) -> None:
    """One method on the unlabelled images."""
    train(load("demo", [*common(place, seed), *words]), place / method)


def classify(place: Path, start: str, classes: int, seed: int, epochs: int) -> list[float]:
    """Fine-tune, or train from scratch, by the same recipe; the accuracy on each kind of image."""
    words = [
        *common(place, seed), f"objective={{name: classify, classes: {classes}, pool: mean}}",
        f"length={epochs} epochs", f"optim={{lr: 1e-3, weight_decay: 0.05, warmup: {epochs / 10} epochs}}",
    ]  # fmt: skip
    if start != "scratch":
        words.append(f"init={place / start}")
    folder = place / f"classify_{start}"
    train(load("demo", words, folder), folder)
    return [accuracy(folder, place / "images" / test) for test in TESTS]


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
