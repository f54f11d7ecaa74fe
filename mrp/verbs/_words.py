"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mrp.arguments import count as count
from mrp.arguments import number as number
from mrp.arguments import positive as positive

if TYPE_CHECKING:
    from rich.table import Table

    from mrp.report.page import Page

_WIDE = 240  # columns of a file or a pipe, where nothing has to fit a screen


def add_recipe(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Adds a recipe, and values that replace its own."""
    parser.add_argument("recipe", nargs=nargs, help="a YAML file, or the name of a recipe ('mrp recipes' lists them)")
    add_key_values(parser, "values that replace the recipe's")


def add_key_values(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds key=value words that are no recipe's."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=what)


def add_weights(
    parser: argparse.ArgumentParser, help: str = "whose weights (default: the run's own)", **more: Any
) -> None:
    """Adds whose weights of a run are taken."""
    parser.add_argument("--weights", choices=("student", "teacher", "average"), help=help, **more)


def add_step(parser: argparse.ArgumentParser) -> None:
    """Adds which checkpoint is taken."""
    parser.add_argument("--step", type=int, metavar="N", help="take the checkpoint of this step (default: the newest)")


def add_again(parser: argparse.ArgumentParser) -> None:
    """Adds the wish not to take what is known already."""
    parser.add_argument("--again", action="store_true", help="measure everything once more, not only what is missing")


def add_folder(parser: argparse.ArgumentParser, default: str = "runs/RECIPE") -> None:
    """Adds the folder that the run is written into."""
    parser.add_argument("--folder", metavar="FOLDER", help=f"the run's folder (default: {default})")


def add_processes(parser: argparse.ArgumentParser, use: str = "processes on this machine") -> None:
    """Adds the number of processes that the command line starts for this verb."""
    parser.add_argument("--processes", type=count, default=1, metavar="N", help=f"{use} (default: 1)")


def add_planned_processes(parser: argparse.ArgumentParser, use: str = "processes to plan for") -> None:
    """Adds the number of processes that a verb plans for, and does not become itself."""
    parser.add_argument(
        "--processes", dest="planned_for", type=count, default=1, metavar="N", help=f"{use} (default: 1)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the form in which scripts read results."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Adds silence to a verb, or to each of its actions."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for below in (choice for action in nested for choice in action.choices.values()):
        add_quiet(below)
    if not nested:
        text = "print nothing but results, warnings and errors"
        parser.add_argument("--quiet", action="store_true", help=text)


def data_words(options: argparse.Namespace) -> list[str]:
    """Returns the key=value words of a verb that takes no other words; refuses anything else."""
    from mrp.config import ConfigError

    unknown = [word for word in options.overrides if "=" not in word]
    if unknown:
        raise ConfigError(f"mrp {options.verb} does not know {' '.join(unknown)}; see 'mrp {options.verb} --help'")
    words: list[str] = options.overrides
    return words


def table_of_tags(tags: Sequence[Mapping[str, Any]], images: int) -> Table:
    """Returns how well each tag is told on so many test images; of many tags the lowest."""
    from rich.table import Table

    from mrp.report import tagged

    header, rows = tagged.lines(tags)
    table = Table(*header, title=f"{len(rows)} tags on {images:,} test images, from the lowest")
    for row in rows[: tagged.LISTED]:
        table.add_row(*row)
    return table


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal, or wider where there is none; a [word] or :word: in it is only text.

    Its title and its caption are lines of their own, which a narrow table does not break.
    """
    from rich.console import Console

    console = Console(width=width(), markup=False, emoji=False, highlight=False)
    title, table.title, caption, table.caption = table.title, None, table.caption, None
    for part in filter(None, (title, table, caption)):
        console.print(part)


def width() -> int:
    """Returns how many columns may be printed into."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE


def percent(result: Mapping[str, Any] | None, digits: int = 1) -> str:
    """Returns an accuracy with its interval, where it has one, in words."""
    while isinstance(inside := (result or {}).get("accuracy"), Mapping):
        result = inside
    if result is None:
        return ""
    return measured({**result, "value": result["accuracy"], "share": True}, digits)


def measured(measure: Mapping[str, Any], digits: int = 1) -> str:
    """Returns a number with its interval, where it has one, in words; a share in percent."""
    from mrp.evaluate.interval import in_percent

    bounds = [measure[key] for key in ("value", "low", "high") if measure.get(key) is not None]
    value, *interval = (in_percent(bound, digits) if measure["share"] else f"{bound:.4g}" for bound in bounds)
    return value + " %" * bool(measure["share"]) + (f" ({' to '.join(interval)})" if interval else "")


def print_page(page: Page, as_json: bool, written: object = None) -> None:
    """Prints a page of results as a table, and where it is written; or the whole of it as JSON."""
    if as_json:
        print(json.dumps(page.plain(), indent=1))
        return
    from mrp.report import render

    for table in render.terminal(page, width()):
        print_table(table)
    if written is not None:
        print(f"written to {written}")
