"""`mrp runs`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mrp import progress
from mrp.verbs import _words

if TYPE_CHECKING:
    from rich.table import Table

    from mrp.report.listing import Listing

HELP = "list runs: their state, progress, best results, size, and the options in which they differ"
EXAMPLE = "mrp runs --where state=running --watch"
_HOME, _TO_THE_END_OF_THE_LINE, _BELOW, _ALL = "\033[H", "\033[K", "\033[J", "\033[2J"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a folder, what to list of it and how."""
    parser.add_argument(
        "folder", nargs="?", default="runs", metavar="FOLDER", help="the folder of the runs (default: runs)"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs that meet this (may be repeated); "
        "KEY is a column, a measured value or an option; also KEY!=VALUE, KEY<NUMBER, KEY>NUMBER, and * in a value",
    )  # fmt: skip
    parser.add_argument("--sort", default="", metavar="KEY", help="sort by a column, a measured value or an option")
    parser.add_argument("--reverse", action="store_true", help="sort the other way round")
    parser.add_argument(
        "--columns", default="", metavar="KEY,...", help="show these columns: run, state, why, step, steps, progress, "
        "left, loss, images_per_second, best, size, age, seen, starts, a measured value, or an option such as optim.lr",
    )  # fmt: skip
    _words.add_json(parser)
    parser.add_argument(
        "--watch", nargs="?", type=_words.count, const=5, metavar="SECONDS",
        help="show the list anew every so many seconds (default: 5) until Ctrl-C",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Prints the list, once or until it is interrupted."""
    begun = False
    while True:
        found = _listing(options)
        if options.json:
            print(json.dumps(found.plain(), indent=None if options.watch else 1), flush=True)
        elif options.watch and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            print(("" if begun else _ALL) + _screen(found, options.watch), end="", flush=True)
        else:
            _print(found, options.folder, options.where)
        if not options.watch:
            return
        begun = True
        try:
            time.sleep(options.watch)
        except KeyboardInterrupt:  # the usual way to leave
            print()
            return


def _listing(options: argparse.Namespace) -> Listing:
    from mrp.report.listing import listing

    columns = [key.strip() for key in options.columns.split(",") if key.strip()]
    return listing(Path(options.folder), options.where, options.sort, options.reverse, columns)


def _print(found: Listing, folder: str, where: list[str]) -> None:
    if not found.rows:
        print(f"{folder}: no run meets --where" if where else f"{folder}: holds no runs", flush=True)
        return
    columns = found.columns if len(found.rows) == 1 else found.fitting(_words.width())
    _words.print_table(_table(found, columns))
    if left_out := [key for key in found.columns if key not in columns]:
        progress.say(f"there is no room for {', '.join(left_out)}; --columns chooses")
    if left_out := [key for key in found.options if key not in found.columns]:
        progress.say(f"they differ too in {', '.join(left_out)}; --columns shows any of these")


def _table(found: Listing, columns: Sequence[str]) -> Table:
    """Returns one row per run; a single run has one row per column, which leaves room for the reason of its end."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    if len(found.rows) == 1:
        table = Table("", "", show_header=False, box=SIMPLE_HEAD, pad_edge=False)
        for key, cell in zip(found.columns, found.cells(found.rows[0]), strict=True):
            table.add_row(key, cell)
        return table
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for key in columns:
        table.add_column(key, overflow="fold", min_width=found.width(key))
    for row in found.rows:
        table.add_row(*found.cells(row)[: len(columns)])
    return table


def _screen(found: Listing, seconds: int) -> str:
    """Returns what fills a terminal from its top, in place of what stood there."""
    from rich.console import Console

    size = shutil.get_terminal_size()
    console = Console(width=size.columns, markup=False, emoji=False)
    with console.capture() as drawn:
        console.print(_table(found, found.fitting(size.columns)) if found.rows else "no runs")
    lines = drawn.get().splitlines()
    room = max(1, size.lines - 2)
    more = f"{len(lines) - room} lines more do not fit; " if len(lines) > room else ""
    last = f"{time.strftime('%H:%M:%S')}: {more}every {seconds} s, Ctrl-C ends"
    return _HOME + "".join(f"{line}{_TO_THE_END_OF_THE_LINE}\n" for line in [*lines[:room], last]) + _BELOW
