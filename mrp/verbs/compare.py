"""`mrp compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrp.report import compare

HELP = "put what was measured of several runs or checkpoints into one table and one picture"
EXAMPLE = "mrp compare runs/mae runs/umae --out compare.png"
_WIDE = 240  # columns of a file or a pipe, where nothing has to fit a screen


def words(parser: argparse.ArgumentParser) -> None:
    """Adds runs and a picture."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="runs, checkpoints or imported weights that were measured"
    )
    parser.add_argument("--out", default="compare.png", metavar="PNG", help="default: compare.png")


def run(options: argparse.Namespace) -> None:
    """Prints the table and draws the picture."""
    from rich.console import Console
    from rich.table import Table

    from mrp.report import compare

    points = compare.collect([Path(run) for run in options.runs])
    measures = [measure for measure in compare.MEASURES if any(point.measure == measure for point in points)]
    table = Table(title="accuracy on held-out images, with 95 % intervals", title_justify="left")
    for column in ("run", "data", "step", *(compare.MEASURES[measure] for measure in measures)):
        table.add_column(column, no_wrap=column in ("run", "step"))
    labels = compare.data_labels(points)
    for row in dict.fromkeys(point.row for point in points):
        values = {point.measure: _percent(point) for point in points if point.row == row}
        run, data, step = row
        table.add_row(run, labels[data], f"{step:,}", *(values.get(measure, "") for measure in measures))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    compare.picture(points, Path(options.out))
    print(f"written to {options.out}")


def _percent(point: compare.Point) -> str:
    return f"{100 * point.accuracy:.1f} % ({100 * point.low:.1f} to {100 * point.high:.1f})"
