"""`mrp report`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "draw a run: loss curve, and inputs beside their reconstructions"
EXAMPLE = "mrp report runs/demo"
_PICTURES = 8  # images in the picture of reconstructions


def words(parser: argparse.ArgumentParser) -> None:
    """A run."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")


def run(options: argparse.Namespace) -> None:
    """Draw the run."""
    for path in draw(Path(options.run)):
        print(f"written to {path}")


def draw(folder: Path) -> list[Path]:
    """Write the loss curve and, where the objective paints, its reconstructions of held-out images."""
    from mrp import api
    from mrp.monitor.metrics import METRICS
    from mrp.report.pictures import reconstructions
    from mrp.report.plots import loss_curve

    model = api.load(folder)
    curve = folder / "loss.png"
    loss_curve(folder / METRICS, curve)
    images = api.held_out(model.run, _PICTURES)
    if model.objective.paints:
        mask, painted = model.reconstruct(images)
        picture = folder / "reconstructions.png"
        reconstructions(images.float() / 255, mask, painted, model.backbone.patch_embed.patch_size, picture)
        return [curve, picture]
    return [curve]
