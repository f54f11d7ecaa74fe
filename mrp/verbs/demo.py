"""`mrp demo`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mrp.verbs import _words, probe, report

HELP = "pretrain, probe and draw a small run on data that comes with scikit-learn"
EXAMPLE = "mrp demo"


def words(parser: argparse.ArgumentParser) -> None:
    """A folder."""
    _words.add_folder(parser)


def run(options: argparse.Namespace) -> None:
    """The whole path on data that is at hand: pretrain, probe, draw, and say where everything is."""
    from mrp.run import find_recipe, load
    from mrp.train import train

    folder = Path(options.run or "runs/demo")
    train(load(find_recipe("demo")), folder)
    probe.show(folder)
    curve, picture = report.draw(folder)
    print(
        f"\nin {folder}/:\n"
        f"  {picture.name:<22} what the model sees of held-out digits, and what it paints over the rest\n"
        f"  {curve.name:<22} the loss, step by step\n"
        f"  metrics.jsonl          the same as numbers\n"
        f"  probe.json             the table above\n"
        f"  config.yaml            every option of the run\n"
        f"  checkpoints/           the weights\n"
        f"\nnext{'' if shutil.which('mrp') else ', after: source .venv/bin/activate'}:\n"
        f"  mrp config demo objective.mask_ratio=0.5                    see what a change comes to\n"
        f"  mrp pretrain demo objective.mask_ratio=0.5 --folder runs/half  try it, then: mrp probe runs/half\n"
        f"  mrp recipes                                                 the recipes for real data"
    )
