"""Write the expected files of the golden tests anew: `make golden`, then read the diff before committing it.

They pin what every recipe resolves to, and the first losses on the CPU of every training method and of what else is
drawn per sample: a change of either is a decision, never an accident, since it changes runs that go on.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from mrp.build import build_optimizer, build_step, open_source
from mrp.config import Tree, build
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.objectives import OBJECTIVES
from mrp.optim.groups import set_lr
from mrp.plan import plan_order
from mrp.run import Run, load, recipes
from mrp.schedules import Length

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
STEPS = 12
FITTING: dict[str, dict[str, object]] = {
    "classify": {"classes": 10},
    "capi": {"clusters": 16, "predicted": 0.25, "predictor": {"width": 48, "depth": 2, "heads": 4}},
    "crossmae": {"decoder": {"width": 48, "depth": 2, "heads": 4}},
    "data2vec": {"layers": 2},
    "data2vec2": {"layers": 2, "masks": 4, "decoder": {"width": 48, "depth": 2}},
    "ijepa": {"predictor": {"width": 48, "depth": 2}},
    "mae": {"decoder": {"width": 48, "depth": 2, "heads": 4}},
    "maskfeat": {"smallest_block": 4, "cell": 4},
    "simmim": {"mask_unit": 8},
}
_PIXELS = {"train": "digits", "size": 32, "channels": 3}  # as some augmentations need
DRAWN: dict[str, dict[str, Any]] = {  # sections beside those that all have
    "data2vec, BEiT's blocks": {"objective": {"name": "data2vec", "layers": 2, "blocks": "beit"}},
    # The head's weights are large, since the images hardly change the first losses of the usual ones.
    "classify, fine-tuned": {
        "objective": {"name": "classify", "classes": 10, "head_std": 0.2},
        "backbone": {"drop_path": 0.3},
        "data": _PIXELS | {"augment": {"name": "crop", "rand": {"magnitude": 9, "deviation": 0.5}}},
        "mix": {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5},
    },
    "mae, a chain": {
        "data": _PIXELS | {"augment": ["crop", "rotate90", "flip", "jitter", "grey", "blur", "solarise"]},
        "mix": {"drop_channels": 0.5},
    },
}


def resolved() -> dict[str, str]:
    """Every recipe, fully resolved, as YAML."""
    return {
        path.stem: yaml.safe_dump(load(path).resolved(), sort_keys=False, default_flow_style=None, width=120)
        for path in sorted(recipes().glob("*.yaml"))
    }


def losses(name: str) -> list[float]:
    """Returns the first losses of a method, or of a case of `DRAWN`, on digits enlarged to 32 pixels.

    Methods have their own defaults, as far as they fit.
    """
    run = build(Run, Tree(_values(name), {}))
    source = open_source(run, "train")
    order = plan_order(run, len(source))
    loader = Loader(
        source, order, View(run.data, train=True), group=run.batch, micro_batch=run.batch, rank=0, world=1, workers=0,
        pin_memory=False,
    )  # fmt: skip
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    found = []
    for number, (batch,) in enumerate(loader.steps(0, STEPS)):
        torch.manual_seed(number)
        set_lr(optimizer, partial(run.optim.lr_at, number, Length(STEPS, STEPS, run.batch), 2, ()))
        output = step(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.after_step(number, torch.tensor(True))
        found.append(float(output.loss.detach()))
    return found


def _values(name: str) -> dict[str, object]:
    method, _, case = name.partition(",")
    more = DRAWN[name] if case else {}
    backbone = {"width": 48, "depth": 3, "heads": 4, "patch": 4}
    return {
        "objective": {"name": method, **FITTING.get(method, {})},
        "data": {"train": "digits", "size": 32, "channels": 1, "augment": {"name": "crop", "scale": [0.5, 1]}},
        "batch": 16,
        "length": f"{STEPS} steps",
        "optim": {"lr": 1e-3},
        "precision": "fp32",
        **more,
        "backbone": backbone | more.get("backbone", {}),
    }


def main() -> None:
    """Write everything."""
    trees = resolved()  # before anything is removed
    curves = {name: losses(name) for name in (*OBJECTIVES.names(), *DRAWN)}
    (FOLDER / "recipes").mkdir(parents=True, exist_ok=True)
    for old in (FOLDER / "recipes").glob("*.yaml"):
        old.unlink()
    for name, text in trees.items():
        (FOLDER / "recipes" / f"{name}.yaml").write_text(text)
    (FOLDER / "losses.json").write_text(json.dumps(curves, indent=1) + "\n")
    print(f"written to {FOLDER}: {len(trees)} recipes, {len(curves)} loss curves")


if __name__ == "__main__":
    main()
