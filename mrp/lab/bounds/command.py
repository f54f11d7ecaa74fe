"""`mrp lab bounds`: its words and what runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp.lab.words import add_out, count, print_table

HELP = "the inequalities of U-MAE's theory at every checkpoint of a run"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the run, and how many images and steps to take."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="the folder of a run whose loss is a squared error",
    )
    parser.add_argument("--images", type=count, default=512, metavar="N", help="held-out images (default: 512)")
    parser.add_argument(
        "--descent", type=count, default=600, metavar="N", help="steps in search of the decoder's error (default: 600)"
    )
    add_out(parser, "bounds")


def run(options: argparse.Namespace) -> None:
    """Evaluates the inequalities at every checkpoint, prints a table, and writes the results."""
    from mrp.lab import figures
    from mrp.lab.bounds import experiment, plots

    result = experiment.run(options.run, options.images, options.descent)
    title = f"{result.method}: left side minus right side, which should not be negative"
    rows = [[str(row.step), *(f"{gap} ({gap.verdict})" for gap in row.gaps.values())] for row in result.rows]
    print_table(title, ["step", *experiment.GAPS.values()], rows, width=190)
    figures.write(options.out, "results.json", result.as_data(), {"bounds.png": plots.draw(result)})
