"""`mrp demo`."""

from __future__ import annotations

import argparse
import shutil

from mrp import imports
from mrp.verbs import _words, probe, report

HELP = "pretrain, probe and draw a small run on data that comes with scikit-learn"
EXAMPLE = "mrp demo"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a folder."""
    _words.add_folder(parser, default="runs/demo")


def run(options: argparse.Namespace) -> None:
    """Pretrains, probes and draws a run on data that needs no download, and says where everything is."""
    with imports.undisturbed():
        from mrp import api

    folder = api.pretrain("demo", folder=options.folder)
    probe.show(folder)
    page = report.draw([folder])
    print(
        f"\nin {folder}/:\n"
        f"  {page.name:<22} open it in a browser: curves, results, reconstructions, attention, neighbours\n"
        f"  metrics.jsonl          the curves as numbers\n"
        f"  probe.json             the table above\n"
        f"  config.yaml            every option of the run\n"
        f"  checkpoints/           the weights\n"
        f"\nnext{'' if shutil.which('mrp') else ', after: source .venv/bin/activate'}:\n"
        f"  mrp config demo objective.mask_ratio=0.5                    see what follows from a change\n"
        f"  mrp pretrain demo objective.mask_ratio=0.5 --folder runs/half  try it, then: mrp probe runs/half\n"
        f"  mrp recipes                                                 the recipes for real data"
    )
