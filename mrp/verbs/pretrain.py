"""`mrp pretrain`."""

from __future__ import annotations

import argparse
import time
from itertools import chain
from pathlib import Path

from mrp import imports, progress
from mrp.verbs import _words

HELP = "train a recipe; the same command again continues where the run stopped"
EXAMPLE = "mrp pretrain mae_vit_tiny_cifar10 data.train=cifar-10-binary.tar.gz"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, a folder, processes."""
    _words.add_recipe(parser)
    _words.add_folder(parser)
    _words.add_processes(parser)


def run(options: argparse.Namespace) -> None:
    """Trains a recipe into its folder, and says what came out and what can be done with it."""
    begin = time.monotonic()
    with imports.undisturbed():
        from mrp import api

    folder = api.pretrain(options.recipe, *options.overrides, folder=options.folder)
    if progress.is_first():
        print(summary(folder, time.monotonic() - begin))


def summary(folder: Path, seconds: float) -> str:
    """Returns the last loss of a run, the time that this command took, and the commands that use the run."""
    from mrp.config import compose
    from mrp.folder import CONFIG
    from mrp.monitor.metrics import METRICS, from_the_end

    lines = (line for _, line in from_the_end(folder / METRICS))
    last = next(lines, {})  # whoever cleared the folder may have removed them
    step = f" at step {last['step']:,}" if last else ""
    losses = (line["loss"] for line in chain([last], lines) if "loss" in line)  # a last step that was left out has none
    loss = f"loss {float(found):.4f}" if (found := next(losses, None)) is not None else "no loss logged"
    tested = compose(folder / CONFIG).values["data"].get("test") is not None
    commands = {
        f"mrp probe {folder}{'' if tested else ' --evaluator geometry'}": "measure its features",
        f"mrp report {folder}": "show what happened as a page",
        f"mrp export {folder} --to timm": "write its weights for other code",
    }
    width = max(map(len, commands))
    return "\n".join(
        [
            f"{folder}: complete{step}, {loss}; this command took {progress.duration(seconds)}",
            "next:",
            *(f"  {command:<{width}}  # {purpose}" for command, purpose in commands.items()),
        ]
    )
