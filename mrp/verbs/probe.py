"""`mrp probe`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "judge a run's features: linear probe and kNN, beside the untrained backbone"
EXAMPLE = "mrp probe runs/demo"


def words(parser: argparse.ArgumentParser) -> None:
    """A run."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")


def run(options: argparse.Namespace) -> None:
    """Judge the trained backbone and the untrained one by the same two protocols."""
    show(Path(options.run))


def show(folder: Path) -> None:
    """Judge a run, and print the table."""
    from rich.console import Console
    from rich.table import Table

    from mrp import api

    results = api.probe(folder)
    if not results:  # another process has them
        return
    table = Table(title=f"{folder}: accuracy on held-out images", title_justify="left")
    for column in ("features", "linear probe", "kNN (k = 20)"):
        table.add_column(column)
    for name, row in results.items():
        table.add_row(name, *(_percent(row[protocol]) for protocol in ("linear", "knn")))
    Console(width=100).print(table)
    print(f"written to {folder / api.PROBE}")


def _percent(result: dict[str, float]) -> str:
    return f"{100 * result['accuracy']:.1f} % ({100 * result['low']:.1f} to {100 * result['high']:.1f})"
