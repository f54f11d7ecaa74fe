"""Every training method on CIFAR-10 with one small ViT, side by side: its features, and what they are good for.

    python tools/small_study.py DATA [--epochs 10] [--seeds 1] [--methods mae umae ...] [--out runs/study]
    python tools/small_study.py DATA --judge --fraction 0.2 --tune 3 --paper mae --paper-epochs 10

DATA is a folder with train/ and test/ of class folders, or CIFAR-10's binary archive. Run again, it goes on where it
stopped; finished runs are only read. The table goes to the screen and to OUT/table.md.

With --judge each trained run is judged in every way there is, on the same part of the training images and all test
images: the sweep, nearest neighbours, fine-tuning beside training from scratch for the same steps and, of one method,
the paper's linear probe. That table goes to OUT/judged.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mrp import api, probing
from mrp.config import Tree, build
from mrp.evaluate.processes import meet
from mrp.evaluate.table import Store
from mrp.run import Machine, Run, follow
from mrp.train.loop import train
from mrp.train.tracker import METRICS, read_lines
from mrp.train.validate import VALIDATION

DECODER = {"width": 64, "depth": 2, "heads": 4}
# Teachers follow faster than the official ones, which average over as many steps as a short run has.
TEACHER = {"decay": 0.99, "last": 0.999, "steps": 1000}
METHODS: dict[str, dict[str, Any]] = {
    "mae": {"name": "mae", "decoder": DECODER},
    "umae": {"name": "mae", "decoder": DECODER, "uniformity": 0.01},
    "simmim": {"name": "simmim", "mask_unit": 8},
    "usimmim": {"name": "simmim", "mask_unit": 8, "uniformity": 0.01},
    "data2vec": {"name": "data2vec", "layers": 3, "smallest_block": 4, "teacher": TEACHER},
    "data2vec2": {
        "name": "data2vec2",
        "masks": 4,
        "block": 2,
        "layers": 4,
        "decoder": {"width": 96, "depth": 3, "groups": 8},
        "teacher": TEACHER,
    },
    "supervised": {"name": "classify", "classes": 10, "pool": "cls"},
}
BACKBONE = {"width": 96, "depth": 6, "heads": 3, "patch": 4}
OFFICIAL = {"data2vec2": {"norm": "post"}}  # what a method's backbone has besides
COLUMNS = {
    "loss": ("loss", "{:.3f}"),
    "features/rank_me": ("effective rank", "{:.1f}"),
    "features/participation_ratio": ("participation", "{:.1f}"),
    "features/uniformity": ("uniformity", "{:.3f}"),
    "features/alignment": ("alignment", "{:.3f}"),
    "linear": ("linear %", "{:.1f}"),
    "knn": ("kNN %", "{:.1f}"),
    "minutes": ("CPU min", "{:.0f}"),
}
CROPS = {"name": "crop", "scale": [0.2, 1.0]}
# Of an untrained backbone, fine-tuning is supervised training from scratch.
VERDICTS = {"linear": "linear (sweep) %", "knn": "kNN %", "tuned": "fine-tuned %", "paper": "paper's probe %"}


def make_run(method: str, data: Path, epochs: int, seed: int) -> Run:
    """The recipe of one row: all share the backbone, the data, the batch and the schedule."""
    folder = data.is_dir() and (data / "train").is_dir()
    values = {
        "objective": METHODS[method],
        "backbone": BACKBONE | OFFICIAL.get(method, {}),
        "data": {
            "train": str(data / "train" if folder else data),
            "test": str(data / "test" if folder else data),
            "size": 32,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2470, 0.2435, 0.2616],
            "augment": CROPS,
        },
        "batch": 256,
        "length": f"{epochs} epochs",
        "optim": {"lr": 1.5e-3, "warmup": "1 epoch", "weight_decay": 0.05},
        "precision": "fp32",
        "seed": seed,
        "diagnose": {"every": "1 epoch", "images": 2048},
        "checkpoint": {"every": "1 epoch", "keep": 1},
        "machine": {"workers": 0},  # whose processor time would not be counted
    }
    return build(Run, Tree(values, {}))


def study(method: str, data: Path, epochs: int, seed: int, out: Path) -> dict[str, float]:
    """Train and judge one row, or read what was found before."""
    folder = out / f"{method}-{epochs}-{seed}"
    result = folder / "result.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    began = cpu_seconds()
    spent = folder / "spent.json"
    earlier = json.loads(spent.read_text()) if spent.exists() else 0.0
    try:
        train(make_run(method, data, epochs, seed), folder)
    finally:
        if folder.exists():
            spent.write_text(json.dumps(earlier + cpu_seconds() - began))
    last = read_lines(folder / METRICS)[-1]
    judged = api.probe(folder).results["trained"]
    found = {name: last[name] for name in COLUMNS if name in last}
    found |= {"linear": 100 * judged["linear"]["accuracy"], "knn": 100 * judged["knn"]["accuracy"]}
    found |= {"minutes": json.loads(spent.read_text()) / 60}
    result.write_text(json.dumps(found, indent=1))
    return found


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run is judged with: the same for all of them."""

    fraction: float  # of the training images
    tune: int  # epochs of fine-tuning, and of training from scratch
    paper: int  # epochs of the paper's linear probe, which has 90

    def words(self, epochs: int, seed: int, *more: str) -> list[str]:
        """What a recipe of classification is changed by."""
        return [
            f"data.fraction={self.fraction}", f"data.augment={json.dumps(CROPS)}", f"seed={seed}",
            f"length={epochs} epochs", f"optim.warmup={epochs / 10:g} epochs", f"validation.every={epochs} epochs",
            f"checkpoint={json.dumps({'every': '1 epochs', 'keep': 1})}", "precision=fp32", "machine.workers=0", *more,
        ]  # fmt: skip

    def places(self) -> dict[str, str]:
        """Where in a run's folder each verdict is kept; its name says what it was reached with."""
        part = f"judged-{self.fraction:g}"
        return {
            "sweep": f"{part}/sweep.json",
            "tuned": f"{part}/tuned-{self.tune}.json",
            "paper": f"{part}/paper-{self.paper}.json",
        }


def judge(origin: Path, budget: Budget, paper: bool = False, trained: bool = True) -> None:
    """Every verdict that is not there yet: on a trained run, or on the backbone that it began with."""
    run = api.read(origin)
    place = origin if trained else origin.parent / f"untrained-{run.backbone.norm}-{run.seed}"
    at = {name: place / path for name, path in budget.places().items()}
    bare = ["init=null", f"backbone={run.backbone.model_dump_json()}", "optim.layer_decay=null"]
    kept(at["sweep"], partial(sweep, api.load(origin) if trained else api.untrained(origin), place, budget))
    kept(at["tuned"], partial(tune, origin, at["tuned"], budget, run.seed, *([] if trained else bare)))
    if paper:
        kept(at["paper"], partial(linear, origin, at["paper"], budget, run.seed))


def sweep(model: api.Model, place: Path, budget: Budget) -> dict[str, Any]:
    """The best of many linear heads, chosen without the test images, and nearest neighbours."""
    run = probing.with_data(model.run, [f"data.fraction={budget.fraction}"])
    run = run.model_copy(update={"machine": Machine(workers=0)})
    found = probing.judge(probing.Images(run, Store(place / probing.CACHE), meet()), model.module, probing.Options())
    assert found is not None, "there is one process"
    return found


def tune(origin: Path, file: Path, budget: Budget, seed: int, *more: str) -> dict[str, Any]:
    """Fine-tuning as `mrp finetune` does it; with other words the same from scratch."""
    words = budget.words(budget.tune, seed, "batch=64", *more)
    return classified("finetune_tiny_digits", origin, file.with_suffix(""), words)


def linear(origin: Path, file: Path, budget: Budget, seed: int) -> dict[str, Any]:
    """MAE's linear probe at the peak learning rate that the paper's batch of 16,384 comes to, on a batch of 256."""
    words = budget.words(budget.paper, seed, "batch=256", "optim.lr=6.4", "optim.per=null")
    return classified("linear_mae_vit_base_in1k", origin, file.with_suffix(""), words)


def classified(recipe: str, origin: Path, folder: Path, words: list[str]) -> dict[str, Any]:
    """Train a recipe of classification; the accuracy on the test images after the last step."""
    run = follow(recipe, origin, words, folder)
    train(run, folder)
    verdict = json.loads((folder / VALIDATION).read_text(encoding="utf-8"))
    return dict(verdict["student"]["accuracy"]) | {"steps": verdict["step"], "batch": run.batch}


def kept(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before, or is now, with the processor minutes it took; those of interrupted attempts count."""
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    file.parent.mkdir(parents=True, exist_ok=True)
    spent, began = file.with_suffix(".spent"), cpu_seconds()
    earlier = float(spent.read_text()) if spent.exists() else 0.0
    try:
        found = measure()
    finally:
        spent.write_text(str(earlier + cpu_seconds() - began))
    found["minutes"] = float(spent.read_text()) / 60
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found, indent=1), encoding="utf-8")
    os.replace(unfinished, file)
    return found


def cpu_seconds() -> float:
    """Processor time of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def earlier_rows(out: Path) -> dict[str, list[dict[str, float]]]:
    """Everything that was found in this folder, by method and epochs."""
    rows: dict[str, list[dict[str, float]]] = {}
    for result in sorted(out.glob("*/result.json")):
        method, epochs, _ = result.parent.name.split("-")
        rows.setdefault(f"{method}, {epochs} epochs", []).append(json.loads(result.read_text()))
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, with the range where there are several, as Markdown."""
    lines = [
        "| method | " + " | ".join(title for title, _ in COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for method, seeds in rows.items():
        cells = []
        for name, (_, form) in COLUMNS.items():
            values = [row[name] for row in seeds if name in row]
            mean = form.format(sum(values) / len(values)) if values else "-"
            spread = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
            cells.append(mean + spread)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judged_table(out: Path, budget: Budget) -> str:
    """A line a judged run: accuracies on the test images with intervals of 95 %, and processor minutes, as Markdown."""
    titles = [*VERDICTS.values(), *(f"CPU min: {name}" for name in ("pretraining", *budget.places()))]
    lines = ["| method | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for folder in sorted(out.iterdir()):
        at = {name: folder / path for name, path in budget.places().items()}
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in at.items() if path.exists()}
        if not found:
            continue
        before = folder / "result.json"
        minutes = [json.loads(before.read_text())["minutes"] if before.exists() else None]
        minutes += [found[name]["minutes"] if name in found else None for name in at]
        verdicts = found | found.get("sweep", {})
        cells = [interval(verdicts[name]) if name in verdicts else "-" for name in VERDICTS]
        cells += ["-" if value is None else f"{value:.1f}" for value in minutes]
        lines.append(f"| {row_name(folder)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def row_name(folder: Path) -> str:
    """What a folder of the study holds."""
    method, detail, seed = folder.name.split("-")
    how = f"{detail} epochs" if detail.isdigit() else f"{detail}-norm"
    return f"{method}, {how}, seed {seed}"


def interval(found: dict[str, Any]) -> str:
    """An accuracy, from where to where."""
    return f"{100 * found['accuracy']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def main() -> None:
    """Go through the methods; print the table after each, so that an interrupted study is of use."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("data", type=Path)
    words.add_argument("--epochs", type=int, default=10)
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    words.add_argument("--out", type=Path, default=Path("runs/study"))
    words.add_argument("--judge", action="store_true", help="also fine-tune, and train from scratch beside it")
    words.add_argument("--fraction", type=float, default=1.0, help="of the training images that judge (default: all)")
    words.add_argument("--tune", type=int, default=10, help="epochs of fine-tuning (default: 10)")
    words.add_argument("--paper", choices=METHODS, help="the method that goes through the paper's linear probe too")
    words.add_argument("--paper-epochs", type=int, default=90, help="of that probe (default: the paper's 90)")
    options = words.parse_args()
    budget = Budget(options.fraction, options.tune, options.paper_epochs)
    for seed in range(options.seeds):
        for method in options.methods:
            study(method, options.data, options.epochs, seed, options.out)
            found = table(earlier_rows(options.out))
            (options.out / "table.md").write_text(found + "\n")
            if options.judge:
                folder = options.out / f"{method}-{options.epochs}-{seed}"
                judge(folder, budget, paper=method == options.paper)
                judge(folder, budget, trained=False)
                found = judged_table(options.out, budget)
                (options.out / "judged.md").write_text(found + "\n")
            print(f"\n{found}\n", flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; written to {options.out / 'table.md'}")


if __name__ == "__main__":
    main()
