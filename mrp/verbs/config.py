"""`mrp config`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from mrp.verbs import _words

if TYPE_CHECKING:
    from mrp.data.source import Source
    from mrp.run import Run

HELP = "show what a recipe resolves to, and what follows from it"
EXAMPLE = "mrp config mae_vit_base_in1k optim.lr=2e-4"
_SIZE = 1_281_167  # images that are planned for while the data is not there: ImageNet's


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, processes."""
    _words.add_recipe(parser, nargs="?")
    parser.add_argument(
        "--processes", dest="planned_for", type=_words.count, default=1, metavar="N",
        help="processes to plan for (default: 1)",
    )  # fmt: skip
    _words.add_json(parser)
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of recipes, for editors")


def run(options: argparse.Namespace) -> None:
    """Prints the resolved configuration, then the numbers that follow from it on this machine and data."""
    from mrp.config import ConfigError, dump
    from mrp.run import Run, load

    if options.schema:
        from mrp.schema import recipe_schema

        print(json.dumps(recipe_schema(Run), indent=1))
        return
    if options.recipe is None:
        raise ConfigError("a recipe is missing; give its name or file, or --schema; 'mrp recipes' lists those of mrp")
    run = load(options.recipe, options.overrides)
    follows = derived(run, options.planned_for)
    if options.json:
        print(json.dumps({"config": run.resolved(), "follows": follows}, indent=1))
        return
    print(dump(run.resolved()))
    print("# what follows:")
    for name, value in follows.items():
        print(f"#   {name + ':':<22} {value}")


def derived(run: Run, processes: int) -> dict[str, str]:
    """Returns the numbers that a recipe leaves to be computed, as text."""
    import torch

    from mrp.build import measure_cost
    from mrp.data import turbojpeg
    from mrp.plan import plan_order, plan_run
    from mrp.processes.cost import device_memory

    cost = measure_cost(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, missing = _open_data(run)
    order = plan_order(run, max(run.batch, _SIZE) if source is None else source)
    plan = plan_run(run, order.steps_per_epoch, processes, device_memory(device, processes), cost)
    lines = {
        "parameters": f"{cost.parameters / 1e6:.2f} M, of which {cost.trainable / 1e6:.2f} M are trained",
        "FLOPs per image": f"{cost.training_flops / 1e9:.3g} G (forward and backward)",
        "peak learning rate": f"{plan.peak_lr:.4g}",
    }
    if source is not None:
        left_out = f" ({order.dropped} images left out)" if order.dropped else ""
        lines |= {
            "images": f"{len(source):,}",
            "steps per epoch": f"{plan.steps_per_epoch:g}{left_out}",
            "steps": f"{plan.steps:,}, of which {plan.warmup:,} warm up; a checkpoint every {plan.checkpoint_every:,}",
            "FLOPs of the run": f"{cost.training_flops * plan.steps * run.batch:.3g}",
        }
    lines |= missing | {
        "processes": f"{plan.processes} ({device.type})",
        "micro-batch": f"{plan.micro_batch} images per process, accumulated {plan.accumulation} times",
    }
    lines["JPEGs are decoded"] = turbojpeg.described()
    if run.machine.workers == "auto":
        lines["workers"] = f"{run.machine.workers_among(plan.processes)} per process, on the cores of this machine"
    if run.couples_samples:
        lines["coupled batch"] = (
            f"{plan.coupled_batch}: the loss of an image depends on the others of its micro-step, so that another "
            "micro-batch gives another loss; the run keeps this number on any number of processes"
        )
    gib = cost.memory(plan.micro_batch) / 2**30
    return lines | {"memory per process": f"about {gib:.2g} GiB (estimate; data workers not counted)"}


def _open_data(run: Run) -> tuple[Source | None, dict[str, str]]:
    """Returns the training data where they can be opened, and lines that say what is missing of the data."""
    from mrp.build import open_source
    from mrp.config import ConfigError

    source, missing = None, {}
    try:
        source = open_source(run, "train")
    except ConfigError as error:
        missing["steps"] = f"unknown, since {error}"
    try:
        if run.data.test is not None:
            open_source(run, "test")
    except ConfigError as error:
        missing["test data"] = str(error)
    return source, missing
