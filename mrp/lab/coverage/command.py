"""`mrp lab coverage`: its words and what runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp.lab.words import add_out, chosen, count, print_table

HELP = "how much of the objects, and how many of them, the class-activation maps of encoders cover"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the runs, and how many images to measure them on."""
    add = parser.add_argument
    add("runs", metavar="RUN", type=Path, nargs="+", help="folders of runs on the same data set")
    add("--images", type=count, default=512, metavar="N", help="held-out images (default: 512)")
    add("--mosaics", type=count, default=512, metavar="N", help="mosaics of images (default: 512)")
    add("--train", type=count, default=5000, metavar="N", help="images to fit a missing head to (default: 5000)")
    add("--seed", type=int, default=0, metavar="N", help="seed of mosaics and random orders (default: 0)")
    add_out(parser, "coverage")


def run(options: argparse.Namespace) -> None:
    """Measures every run on the same images, prints a table, and writes the results."""
    from mrp.lab import figures
    from mrp.lab.coverage import experiment, plots

    measured = experiment.Options(**chosen(options, experiment.Options))
    runs, examples = experiment.run(measured)
    rows = []
    for name, title in experiment.MEASURES.items():
        stars = [" *" if abs(row.beyond_first[name].value) > row.beyond_first[name].error else "" for row in runs]
        rows.append([title, *(f"{row.measures[name]}{star}" for row, star in zip(runs, stars, strict=True))])
    columns = ["measure", *(f"{row.run} ({row.objective}, {row.head} head)" for row in runs)]
    title = "class-activation maps: means over images, and where they differ from the first run"
    print_table(title, columns, rows, width=max(100, 60 + 30 * len(runs)))
    print("*: the difference from the first run, image by image, is beyond its 95 % interval")
    pictures = {"coverage.png": plots.draw_measures(runs), "maps.png": plots.draw_maps(runs, examples)}
    figures.write(options.out, "results.json", experiment.as_data(measured, runs), pictures)
