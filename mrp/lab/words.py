"""What the experiments' commands share: words of the command line, and tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mrp.arguments import count as count


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the folder for the results."""
    default = Path("runs/lab") / name
    parser.add_argument(
        "--out", type=Path, default=default, metavar="FOLDER", help=f"where the results go (default: {default})"
    )


def chosen(options: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """Returns the words that an experiment's options have a field for, as far as they were given."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names and value is not None}


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> None:
    """Prints a table as wide as the terminal, or as `width` where there is none; a [word] in it is only text."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # without which the end of a number is cut
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False).print(table)
