"""`mrp config`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mrp.verbs import _words

if TYPE_CHECKING:
    from mrp.run import Run

HELP = "show what a recipe resolves to, and what follows from it"
EXAMPLE = "mrp config mae_vit_base_in1k optim.lr=2e-4"
_SIZE = 1_281_167  # images that are planned for while the data is not there: ImageNet's


def words(parser: argparse.ArgumentParser) -> None:
    """A recipe, processes."""
    _words.add_recipe(parser)
    _words.add_processes(parser, "processes to plan for")


def run(options: argparse.Namespace) -> None:
    """Print the resolved tree, then what follows from it on this machine and data."""
    from mrp.config import dump
    from mrp.run import load

    resolved = load(options.recipe, options.overrides)
    follows = derived(resolved, options.processes)
    print(dump(resolved.resolved()))
    print("# what follows:")
    for name, value in follows.items():
        print(f"#   {name + ':':<22} {value}")


def derived(run: Run, processes: int) -> dict[str, str]:
    """The numbers that a recipe leaves to be computed, as text."""
    import torch

    from mrp.build import measure_cost, open_source
    from mrp.config import ConfigError
    from mrp.plan import plan_order, plan_run
    from mrp.processes.cost import device_memory

    cost = measure_cost(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = {
        "parameters": f"{cost.parameters / 1e6:.2f} M, of which {cost.trainable / 1e6:.2f} M are trained",
        "FLOPs an image": f"{cost.training_flops / 1e9:.3g} G (forward and backward)",
        "peak learning rate": f"{run.optim.peak_lr(run.batch):.4g}",
    }
    try:
        source = open_source(run, "train")
    except ConfigError as error:
        lines["steps"] = f"unknown, since {error}"
        order = plan_order(run, max(run.batch, _SIZE))
    else:
        lines["images"] = f"{len(source):,}"
        order = plan_order(run, source)
    plan = plan_run(run, order.steps_per_epoch, processes, device_memory(device, processes))
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
    if run.couples_samples:
        lines["coupled"] = (
            f"the loss depends on which {plan.coupled_batch} images a micro-step takes together (coupled_batch, which "
            "the run keeps on other processes); it is not that of another micro-batch"
        )
    lines["memory a process"] = (
        f"about {cost.memory(plan.micro_batch) / 2**30:.2g} GiB (estimate; data workers not counted)"
    )
    return lines
