"""`mrp finetune`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mrp import imports, progress
from mrp.verbs import _words

HELP = "fine-tune pretrained weights with a recipe of classification, and measure the result for each class or tag"
EXAMPLE = "mrp finetune finetune_tiny_digits init=runs/demo"
_TOP = 5
_WORST = 5  # classes that are named


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, a folder, processes."""
    _words.add_recipe(parser)
    _words.add_folder(parser)
    _words.add_processes(parser)
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Trains a recipe that starts from other weights, and prints how good it is in the end."""
    with imports.undisturbed():
        from mrp import api
    from mrp.evaluators.validation import VALIDATION

    folder = api.finetune(options.recipe, *options.overrides, folder=options.folder)
    if progress.is_first() and (folder / VALIDATION).is_file():
        show(folder / VALIDATION, options.json)


def show(path: Path, as_json: bool = False) -> None:
    """Prints the last results on the test data: all as JSON, or a table and the classes with the lowest accuracy."""
    from rich.table import Table

    from mrp.data.source import listed
    from mrp.evaluate.interval import in_percent

    results = json.loads(path.read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(results, indent=1))
        return
    print(f"{path.parent}: on the test data after step {results['step']}")
    judged = results.get("average") or results["student"]  # the weights that are loaded, probed and exported
    if "tags" in judged:
        _show_tags(path, results, judged["tags"])
        return
    every = judged.get("classes", ())
    keys = ("accuracy", "accuracy5") if len(every) > _TOP else ("accuracy",)  # five answers of five are always right
    titles = {"accuracy": "top-1", "accuracy5": f"top-{_TOP}"}
    table = Table("weights", "images", *(titles[key] for key in keys), "loss")
    for weights in ("student", "average"):
        if row := results.get(weights):
            shares = (_words.percent(row.get(key), digits=2) for key in keys)
            table.add_row(weights, f"{row['images']:,}", *shares, f"{row['loss']:.4f}")
    _words.print_table(table)
    classes = [entry for entry in every if entry["accuracy"] is not None]
    worst = sorted(classes, key=lambda entry: entry["accuracy"])[:_WORST]
    if worst:
        print("worst classes: " + ", ".join(f"{entry['name']} {in_percent(entry['accuracy'])} %" for entry in worst))
    if none := tuple(entry["name"] for entry in every if entry["accuracy"] is None):
        print(f"classes without a test image: {listed(none)}")
    print(f"the accuracy and the confusions of every class: {path}")


def _show_tags(path: Path, results: dict[str, Any], every: list[dict[str, Any]]) -> None:
    """Prints how well the tags are told that an image may have several of, and then each, or the lowest of many."""
    from rich.table import Table

    from mrp.evaluate.measures import MEASURES

    found = {weights: row for weights in ("student", "average") if (row := results.get(weights))}
    measures = next(iter(found.values()))[MEASURES]
    table = Table("weights", "images", *(one["title"] for one in measures.values()), "loss")
    for weights, row in found.items():
        shares = (_words.measured(row[MEASURES][key], digits=2) for key in measures)
        table.add_row(weights, f"{row['images']:,}", *shares, f"{row['loss']:.4f}")
    _words.print_table(table)
    _words.print_table(_words.table_of_tags(every, next(iter(found.values()))["images"]))
    print(f"average precision and AUROC of every tag: {path}")
