"""`mrp report`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "draw a run: loss curve, and inputs beside their reconstructions"
EXAMPLE = "mrp report runs/demo"
_PICTURES = 8  # images in the picture of reconstructions


def words(parser: argparse.ArgumentParser) -> None:
    """A run, a checkpoint, weights."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, one of its checkpoints, or imported weights")


def run(options: argparse.Namespace) -> None:
    """Draws what there is to draw."""
    for path in draw(Path(options.run)):
        print(f"written to {path}")


def draw(path: Path) -> list[Path]:
    """Writes the loss curve and, where the objective predicts pixels, its reconstructions of held-out images."""
    import torch

    from mrp import api, probing
    from mrp.config import ConfigError
    from mrp.model import NO_DATA
    from mrp.monitor.metrics import METRICS
    from mrp.report.pictures import reconstructions
    from mrp.report.plots import loss_curve

    model = api.load(path)
    folder = probing.results_folder(path, model)
    written, without = [], f"there is no {METRICS} for a loss curve"
    if (model.folder / METRICS).is_file():
        written.append(folder / "loss.png")
        loss_curve(model.folder / METRICS, written[-1])
    if not model.objective.paints:
        without += f", and {model.run.name} predicts no pixels"
    elif model.missing:
        without += f", and without '{model.missing[0]}' images cannot be reconstructed"
    elif model.run.data.train == NO_DATA:
        without += ", and no images to reconstruct were given ('mrp import ... data.train=PATH' names some)"
    else:
        images = api.held_out(model.run, _PICTURES)
        mask, predicted = model.reconstruct(images)
        step = "" if path.resolve() == model.folder.resolve() else f"-{model.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"reconstructions{step}.png")
        scale = 65535 if images.dtype == torch.uint16 else 255
        reconstructions(images.float() / scale, mask, predicted, model.backbone.patch_embed.patch_size, written[-1])
    if not written:
        raise ConfigError(f"{path}: there is nothing to draw: {without}")
    return written
