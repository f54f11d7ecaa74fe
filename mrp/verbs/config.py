"""`mrp config`."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mrp import imports
from mrp.verbs import _words

if TYPE_CHECKING:
    from mrp.run import Run

HELP = "show what a recipe resolves to, and what follows from it"
EXAMPLE = "mrp config mae_vit_base_in1k optim.lr=2e-4"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, processes."""
    _words.add_recipe(parser, nargs="?")
    _words.add_planned_processes(parser)
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
    """Returns the numbers that a recipe leaves to be computed, as text: what the doctor judges."""
    from mrp.config import ConfigError

    with imports.undisturbed():
        from mrp.doctor import data, recipe
        from mrp.doctor.case import Case

    case = Case(run, processes, Path())
    for part in ("source", "test"):
        with contextlib.suppress(ConfigError):
            getattr(case, part)
    checks = recipe.CHECKS if "source" in case.faults else (*recipe.CHECKS[:2], data.images, *recipe.CHECKS[2:])
    lines = {finding.about: finding.found for check in checks for finding in check(case)}
    return lines | ({"test data": case.faults["test"]} if "test" in case.faults else {})
