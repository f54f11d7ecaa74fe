"""`mrp finetune`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mrp.verbs import _words

HELP = "fine-tune pretrained weights with a recipe of classification, and judge the result class by class"
EXAMPLE = "mrp finetune finetune_tiny_digits init=runs/demo"
_WORST = 5  # classes that are named


def words(parser: argparse.ArgumentParser) -> None:
    """A recipe, a folder, processes."""
    _words.add_recipe(parser)
    _words.add_folder(parser)
    _words.add_processes(parser, "processes on this machine")


def run(options: argparse.Namespace) -> None:
    """Train a recipe that starts from other weights, and say how good it is in the end."""
    from mrp.config import ConfigError
    from mrp.evaluators.validation import VALIDATION
    from mrp.run import load
    from mrp.train import train

    folder = _words.folder(options)
    chosen = load(options.recipe, options.overrides, folder)
    if chosen.init is None:
        raise ConfigError(
            "init: the pretrained weights to fine-tune are not given; add init=RUN (a run's folder, a checkpoint, or "
            "an official file), or train from scratch with 'mrp pretrain'"
        )
    train(chosen, folder)
    if os.environ.get("RANK", "0") == "0" and (folder / VALIDATION).is_file():
        show(folder / VALIDATION)


def show(path: Path) -> None:
    """The last verdicts on the test data, and the classes that fared worst."""
    from rich.console import Console
    from rich.table import Table

    found = json.loads(path.read_text(encoding="utf-8"))
    print(f"{path.parent}: on the test data after step {found['step']}")
    table = Table()
    for column in ("weights", "images", "top-1", "top-5", "loss"):
        table.add_column(column)
    for name in ("student", "average"):
        if row := found.get(name):
            shares = (_percent(row.get(key)) for key in ("accuracy", "accuracy5"))
            table.add_row(name, f"{row['images']:,}", *shares, f"{row['loss']:.4f}")
    Console(width=100).print(table)
    classes = [one for one in found["student"].get("classes", ()) if one["accuracy"] is not None]
    worst = sorted(classes, key=lambda one: one["accuracy"])[:_WORST]
    if worst:
        print("worst classes: " + ", ".join(f"{one['name']} {100 * one['accuracy']:.1f} %" for one in worst))
    print(f"every class, and which are taken for which: {path}")


def _percent(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    return f"{100 * result['accuracy']:.2f} % ({100 * result['low']:.2f} to {100 * result['high']:.2f})"
