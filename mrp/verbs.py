"""What each verb of the command line does."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mrp import api, shards_cli
from mrp.config import ConfigError, dump
from mrp.run import Run, find_recipe, recipes
from mrp.run import load as load_run
from mrp.train.cost import device_memory

_PICTURES = 8  # images in the picture of reconstructions
_SIZE = 1_281_167  # images that are planned for while the data is not there: ImageNet's


def config(options: argparse.Namespace) -> None:
    """Print the resolved tree, then what follows from it on this machine and data."""
    run = load_run(options.recipe, options.overrides)
    follows = derived(run, options.processes)
    print(dump(run.resolved()))
    print("# what follows:")
    for name, value in follows.items():
        print(f"#   {name + ':':<22} {value}")


def derived(run: Run, processes: int) -> dict[str, str]:
    """The numbers that a recipe leaves to be computed, as text."""
    cost = run.cost()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = {
        "parameters": f"{cost.parameters / 1e6:.2f} M, of which {cost.trainable / 1e6:.2f} M are trained",
        "FLOPs an image": f"{cost.training_flops / 1e9:.3g} G (forward and backward)",
        "peak learning rate": f"{run.optim.peak_lr(run.batch):.4g}",
    }
    try:
        source = run.source("train")
    except ConfigError as error:
        lines["steps"] = f"unknown, since {error}"
        order = run.order(max(run.batch, _SIZE))
    else:
        lines["images"] = f"{len(source):,}"
        order = run.order(source)
    plan = run.plan(order.steps_per_epoch, processes, device_memory(device, processes))
    if "steps" not in lines:
        lines["steps an epoch"] = f"{plan.steps_per_epoch:g}" + (
            f" ({order.dropped} images left out)" if order.dropped else ""
        )
        lines["steps"] = (
            f"{plan.steps:,}, of which {plan.warmup:,} warm up; a checkpoint every {plan.checkpoint_every:,}"
        )
        lines["FLOPs of the run"] = f"{cost.training_flops * plan.steps * run.batch:.3g}"
    lines["processes"] = f"{plan.processes} ({device.type})"
    lines["micro-batch"] = f"{plan.micro_batch} images a process, accumulated {plan.accumulation} times"
    lines["memory a process"] = (
        f"about {cost.memory(plan.micro_batch) / 2**30:.2g} GiB (estimate; data workers not counted)"
    )
    return lines


def pretrain(options: argparse.Namespace) -> None:
    """Train a recipe into its folder."""
    from mrp.train.loop import train

    run = load_run(options.recipe, options.overrides)
    train(run, _folder(options))


def _folder(options: argparse.Namespace) -> Path:
    return Path(options.run or Path("runs") / Path(options.recipe).stem)


def probe(options: argparse.Namespace) -> None:
    """Judge the trained backbone and the untrained one by the same two protocols."""
    folder = Path(options.run)
    results = api.probe(folder)
    if not results:  # another process has them
        return
    table = Table(title=f"{folder}: accuracy on held-out images", title_justify="left")
    for column in ("features", "linear probe", "kNN (k = 20)"):
        table.add_column(column)
    for name, row in results.items():
        table.add_row(name, *(_percent(row[protocol]) for protocol in ("linear", "knn")))
    Console(width=100).print(table)
    print(f"written to {folder / api.PROBE}")


def _percent(result: dict[str, float]) -> str:
    return f"{100 * result['accuracy']:.1f} % ({100 * result['low']:.1f} to {100 * result['high']:.1f})"


def report(options: argparse.Namespace) -> None:
    """Draw the run."""
    for path in draw(Path(options.run)):
        print(f"written to {path}")


def draw(folder: Path) -> list[Path]:
    """Write the loss curve and, where the objective paints, its reconstructions of held-out images."""
    from mrp.report.pictures import reconstructions
    from mrp.report.plots import loss_curve
    from mrp.train.tracker import METRICS

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


def shards(options: argparse.Namespace) -> None:
    """Make shards, check them, look at them."""
    shards_cli.run(options)


def list_recipes(options: argparse.Namespace) -> None:
    """One line a recipe: its name and the first line of its head comment."""
    for path in sorted(recipes().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{path.stem:<32} {first.lstrip('# ')}")


def demo(options: argparse.Namespace) -> None:
    """The whole path on data that is at hand: pretrain, probe, draw, and say where everything is."""
    from mrp.train.loop import train

    folder = Path(options.run or "runs/demo")
    train(load_run(find_recipe("demo")), folder)
    options.run = str(folder)
    probe(options)
    curve, picture = draw(folder)
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
