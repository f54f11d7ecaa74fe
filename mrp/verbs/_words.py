"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 240  # columns of a file or a pipe, where nothing has to fit a screen


def number(word: str) -> int:
    """Reads a whole number from 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number from 0")
    return int(word)


def count(word: str) -> int:
    """Reads a whole number from 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number from 1")
    return int(word)


def positive(word: str) -> float:
    """Reads a number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number above 0")
    return value


def add_recipe(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Adds a recipe, and values that replace its own."""
    parser.add_argument("recipe", nargs=nargs, help="a YAML file, or the name of a recipe ('mrp recipes' lists them)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="values that replace the recipe's"
    )


def add_folder(parser: argparse.ArgumentParser, default: str = "runs/RECIPE") -> None:
    """Adds the folder that the run is written into."""
    parser.add_argument("--folder", metavar="FOLDER", help=f"the run's folder (default: {default})")


def add_processes(parser: argparse.ArgumentParser, use: str = "processes on this machine") -> None:
    """Adds the number of processes that the command line starts for this verb."""
    parser.add_argument("--processes", type=count, default=1, metavar="N", help=f"{use} (default: 1)")


def add_planned_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the number of processes that a verb plans for, and does not start."""
    parser.add_argument(
        "--processes", dest="planned_for", type=count, default=1, metavar="N", help="processes to plan for (default: 1)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the form in which scripts read results."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def data_words(options: argparse.Namespace) -> list[str]:
    """Returns the key=value words of a verb that takes no other words; refuses anything else."""
    from mrp.config import ConfigError

    unknown = [word for word in options.overrides if "=" not in word]
    if unknown:
        raise ConfigError(f"mrp {options.verb} does not know {' '.join(unknown)}; see 'mrp {options.verb} --help'")
    words: list[str] = options.overrides
    return words


def is_first_process() -> bool:
    """Returns whether this is the process that prints results."""
    return os.environ.get("RANK", "0") == "0"


def remark(text: str) -> None:
    """Says something beside the results, on stderr, where scripts do not take it for one."""
    print(text, file=sys.stderr, flush=True)


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal, or wider where there is none."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
