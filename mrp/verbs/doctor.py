"""`mrp doctor`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mrp import imports
from mrp.verbs import _words

if TYPE_CHECKING:
    from mrp.doctor.case import Case
    from mrp.doctor.finding import Finding

HELP = "find what would go wrong with a run before it starts, and how long it would take"
EXAMPLE = "mrp doctor mae_vit_base_in1k data.train=shards --processes 8 --on h100"
_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, a folder, processes, what the forecast is for."""
    _words.add_recipe(parser)
    _words.add_folder(parser)
    _words.add_planned_processes(parser)
    parser.add_argument("--quick", action="store_true", help="leave out the checks that take seconds: images, speed")
    parser.add_argument(
        "--on", metavar="GPU", help="also say what the run takes on a GPU of this kind (h100, a100, ...)"
    )
    parser.add_argument(
        "--share", type=_words.positive, metavar="X", help="share of that GPU's peak that is reached (default: 0.3)"
    )
    parser.add_argument("--price", type=_words.positive, metavar="P", help="price per hour and device (default: none)")
    parser.add_argument("--watts", type=_words.positive, metavar="W", help="watts that a device of this machine takes")
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prints what each check finds, and ends with exit code 2 where the run could not go well."""
    found = look(_case(options), options.quick, quiet=options.json)
    if options.json:
        counts = {"errors": _count(found, "error"), "warnings": _count(found, "warning")}
        findings = [{"group": group} | asdict(finding) for group, finding in found]
        print(json.dumps(counts | {"findings": findings}, indent=1))
    summary = check(found, options.recipe)
    if not options.json:
        print(summary)


def look(case: Case, quick: bool = False, quiet: bool = False) -> list[tuple[str, Finding]]:
    """Returns what each check finds, with its group, and prints it in the meantime."""
    from mrp.doctor.examine import examine

    found: list[tuple[str, Finding]] = []
    for group, finding in examine(case, quick):
        if not quiet:
            _show(group if not found or found[-1][0] != group else None, finding)
        found.append((group, finding))
    return found


def check(found: list[tuple[str, Finding]], name: str) -> str:
    """Returns how many warnings there are; raises an error where the run could not go well."""
    from mrp.config import ConfigError

    errors, warnings = _count(found, "error"), _counted(_count(found, "warning"), "warning")
    if errors:
        raise ConfigError(f"{name}: {_counted(errors, 'error')}, {warnings}; mend what is named above")
    return f"{name}: no error, {warnings}"


def _count(found: list[tuple[str, Finding]], level: str) -> int:
    return sum(finding.level == level for _, finding in found)


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'s' if count > 1 else ''}"


def _case(options: argparse.Namespace) -> Case:
    from mrp.config import ConfigError, compose, nearest

    with imports.undisturbed():
        from mrp.doctor.case import Case, Terms
    from mrp.doctor.forecast import GPUS
    from mrp.run import find_recipe, load, run_folder

    if options.on is not None and options.on not in GPUS:
        raise ConfigError(f"--on: '{options.on}' was given; allowed: {', '.join(GPUS)}{nearest(options.on, GPUS)}")
    folder: Path = run_folder(options.recipe, options.folder)
    return Case(
        load(options.recipe, options.overrides, folder), options.planned_for, folder,
        written=compose(find_recipe(options.recipe), find=find_recipe).values,
        terms=Terms(options.on, options.price, options.watts, options.share),
    )  # fmt: skip


def _show(group: str | None, finding: Finding) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    if group is not None:
        console.print(Text(group, style="bold"))
    console.print(
        Text(f"  {finding.level:<8}", style=_COLOURS[finding.level]) + Text(f"{finding.about}: {finding.found}")
    )
    if finding.remedy:
        console.print(f"          -> {finding.remedy}", markup=False)
