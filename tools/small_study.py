"""Every training method with one small ViT on CIFAR-10 or on digits, side by side: its features, and their use.

    python tools/small_study.py DATA [--epochs 10] [--seeds 1] [--methods mae umae ...] [--out runs/study]

DATA is a folder with train/ and test/ of class folders, CIFAR-10's binary archive, or `digits`, on which each method
has the settings of its recipe (`..._tiny_digits`) and a smaller ViT. Run again, it goes on where it stopped; finished
runs are only read. The table goes to the screen and to OUT/table.md. What else the runs are good for (fine-tuning
beside training from scratch, the paper's probe) is what `judge_study.py OUT/*-*-*` measures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import study
import torch

from mrp import api
from mrp.config import Tree, build
from mrp.evaluate.statistics import between_seeds
from mrp.monitor.metrics import METRICS, read_lines
from mrp.run import Run, load
from mrp.train import train

DECODER = {"width": 64, "depth": 2, "heads": 4}
# Teachers follow faster than the official ones, which average over as many steps as a short run has.
TEACHER = {"decay": 0.99, "last": 0.999, "steps": 1000}
METHODS: dict[str, dict[str, Any]] = {
    "mae": {"name": "mae", "decoder": DECODER},
    "muon": {"name": "mae", "decoder": DECODER},
    "sigreg": {"name": "mae", "decoder": DECODER, "uniformity": {"weight": 0.02, "kind": "sigreg"}},
    "pixio": {"name": "mae", "mask_unit": 8, "decoder": DECODER | {"depth": 4}},
    "crossmae": {"name": "crossmae", "decoder": DECODER},
    "ijepa": {"name": "ijepa", "predictor": {"width": 48, "depth": 2}, "teacher": TEACHER},
    "maskfeat": {"name": "maskfeat", "smallest_block": 4, "cell": 4},
    "capi": {"name": "capi", "clusters": 256, "predicted": 0.125, "predictor": DECODER, "teacher": TEACHER},
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
# What a method's backbone and its optimizer have besides.
OFFICIAL: dict[str, dict[str, Any]] = {
    "data2vec2": {"norm": "post"},
    "ijepa": {"class_token": False},
    "pixio": {"positions": "learned", "registers": 3},
}
OPTIM = {"muon": {"name": "muon"}}
RECIPES = {"mae": "demo", "muon": "mae_muon_tiny_digits", "sigreg": "mae_sigreg_tiny_digits"}  # on digits; others: NAME
COLUMNS = {
    "loss": ("loss", "{:.3f}"),
    "features/rank_me": ("effective rank", "{:.1f}"),
    "features/participation_ratio": ("participation", "{:.1f}"),
    "features/uniformity": ("uniformity", "{:.3f}"),
    "features/alignment": ("alignment", "{:.3f}"),
    "linear": ("linear %", "{:.1f}"),
    "knn": ("kNN %", "{:.1f}"),
    "minutes": ("CPU min", "{:.1f}"),
}
BESIDE = ("linear", "knn")


def make_run(method: str, data: Path, epochs: int, seed: int) -> Run:
    """The recipe of one row: all share the backbone, the data, the batch and the schedule."""
    if str(data) == "digits":
        words = [f"length={epochs} epochs", f"optim.warmup={max(1, epochs // 10)} epochs", f"seed={seed}"]
        words += [f"diagnose={{every: {epochs} epochs, images: 256}}", f"checkpoint.every={epochs} epochs"]
        words += ["backbone.width=48", "backbone.depth=4"]  # so that three seeds of all take minutes
        return load(RECIPES.get(method, f"{method}_tiny_digits"), words)
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
            "augment": {"name": "crop", "scale": [0.2, 1.0]},
        },
        "batch": 256,
        "length": f"{epochs} epochs",
        "optim": {"lr": 1.5e-3, "warmup": "1 epoch", "weight_decay": 0.05} | OPTIM.get(method, {}),
        "precision": "fp32",
        "seed": seed,
        "diagnose": {"every": "1 epoch", "images": 2048},
        "checkpoint": {"every": "1 epoch", "keep": 1},
        "machine": {"workers": 0},  # what others work is not counted
    }
    return build(Run, Tree(values, {}))


def row(method: str, data: Path, epochs: int, seed: int, out: Path) -> dict[str, float]:
    """Train and judge one row, or read what was found before."""
    folder = out / f"{method}-{epochs}-{seed}"
    result = folder / "result.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    spent = folder / "spent.json"
    with study.metered(spent):
        train(make_run(method, data, epochs, seed), folder)
    last = read_lines(folder / METRICS)[-1]
    # The last block alone, so that a probe takes seconds.
    judged = api.probe(folder, "linear.layers=1", evaluators=("linear", "knn")).results["trained"]
    found = {name: last[name] for name in COLUMNS if name in last}
    found |= {"linear": 100 * judged["linear"]["accuracy"], "knn": 100 * judged["knn"]["accuracy"]}
    found |= {"minutes": study.seconds(spent) / 60}
    result.write_text(json.dumps(found, indent=1))
    return found


def earlier_rows(out: Path) -> dict[str, list[dict[str, float]]]:
    """Everything that was found in this folder, by method and epochs."""
    rows: dict[str, list[dict[str, float]]] = {}
    for result in sorted(out.glob("*/result.json")):
        method, epochs, _ = result.parent.name.split("-")
        rows.setdefault(f"{method}, {epochs} epoch{'s' * (epochs != '1')}", []).append(json.loads(result.read_text()))
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, with the range where there are several, and accuracies beside MAE's, as Markdown."""
    titles = [title for title, _ in COLUMNS.values()] + [f"{COLUMNS[name][0]}, less MAE's" for name in BESIDE]
    lines = ["| method | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for method, seeds in rows.items():
        cells = []
        for name, (_, form) in COLUMNS.items():
            values = [row[name] for row in seeds if name in row]
            mean = form.format(sum(values) / len(values)) if values else "-"
            spread = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
            cells.append(mean + spread)
        mae = rows.get(f"mae,{method.partition(',')[2]}", [])
        for name in BESIDE:  # Welch's interval over seeds
            ours, theirs = ([row[name] for row in found] for found in (seeds, mae))
            found = between_seeds(ours, theirs) if min(len(ours), len(theirs)) > 1 and seeds is not mae else None
            cells.append("-" if found is None else f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Go through the methods; print the table after each, so that an interrupted study is of use."""
    words = study.command_line(__doc__)
    words.add_argument("data", type=Path)
    words.add_argument("--epochs", type=int, default=10)
    words.add_argument("--seeds", type=int, default=1)
    words.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    words.add_argument("--out", type=Path, default=Path("runs/study"))
    options = words.parse_args()
    for seed in range(options.seeds):
        for method in options.methods:
            row(method, options.data, options.epochs, seed, options.out)
            found = table(earlier_rows(options.out))
            (options.out / "table.md").write_text(found + "\n")
            print(f"\n{found}\n", flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; written to {options.out / 'table.md'}")


if __name__ == "__main__":
    study.run(main)
