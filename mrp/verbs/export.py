"""`mrp export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp import imports
from mrp.verbs import _words

HELP = "write a folder that other programs load: timm, transformers, the official code, ONNX, torch.export"
EXAMPLE = "mrp export runs/demo --to timm --out exports/demo"
_SIDES = ("timm", "transformers", "official", "onnx", "torch-export")


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the run, who is to load it, and the folder."""
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, a checkpoint's folder, or anything that 'mrp import' reads"
    )
    parser.add_argument("--to", required=True, choices=_SIDES, help="what loads the folder")
    parser.add_argument("--out", metavar="FOLDER", help="the folder to make (default: exports/RUN-TO)")
    _words.add_weights(parser, "default: the average where there is one, else the student")
    _words.add_step(parser)
    parser.add_argument(
        "--whole", action="store_true", help="MAE for transformers: encoder and decoder, as ViTMAEForPreTraining"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the folder, and says how far its answers are from mrp's."""
    with imports.undisturbed():
        from mrp.exchange.export import export

    out = Path(options.out or Path("exports") / f"{Path(options.run).stem}-{options.to}")
    difference = export(options.run, options.to, out, options.weights, options.step, options.whole)
    if difference is None:
        print("not compared: what loads it is not installed")
    else:
        print(f"loaded again, it agrees with the run to {difference:.1e} of the largest value")
    print(f"written to {out}; README.md says how to load it, and leaves its licence to you")
