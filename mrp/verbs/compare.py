"""`mrp compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp.verbs import _words

HELP = "put what was measured of several runs or checkpoints into one table, for the eye, a paper or a README"
EXAMPLE = "mrp compare runs/mae runs/umae --out compare.tex"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds runs and files."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="runs, checkpoints or imported weights that were probed or judged"
    )
    parser.add_argument(
        "--foretell", action="store_true",
        help="show instead how numbers without labels ('geometry') correlate with accuracies over a run's steps",
    )  # fmt: skip
    parser.add_argument(
        "--out", action="append", metavar="FILE",
        help="a picture (.png), Markdown (.md), LaTeX (.tex) or .json (may be repeated; default: compare.png)",
    )  # fmt: skip
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the table and writes the files."""
    if options.foretell:
        return _foretell(options)
    from mrp.config import check_out
    from mrp.report import compare, render

    files = [Path(name) for name in options.out or ["compare.png"]]
    for file in files:
        check_out(file, *render.ENDINGS)
    page = compare.page_of([Path(run) for run in options.runs])
    for file in files:
        render.write(page, file)
    _words.print_page(page, options.json, ", ".join(map(str, files)))


def _foretell(options: argparse.Namespace) -> None:
    """Prints the rank correlations."""
    from rich.table import Table

    from mrp.config import ConfigError
    from mrp.report import foretell

    for name in ("out", "json"):
        if getattr(options, name):
            raise ConfigError(f"--{name}: does nothing with --foretell; leave one of the two out")
    found = foretell.correlations([Path(run) for run in options.runs])
    title = "Spearman's rank correlation over steps of training, with 95 % intervals that take these as independent"
    table = Table("run", "without labels", "with labels", "correlation", "steps", title=title)
    for one in found:
        value, low, high = one.correlation
        shown = f"{value:.2f} ({low:.2f} to {high:.2f})" if value == value else "one value only"
        table.add_row(one.run, one.number, one.measure, shown, str(one.steps))
    _words.print_table(table)
