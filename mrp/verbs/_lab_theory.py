"""The words of `mrp lab maskgraph`, `bounds` and `coverage`, and what runs them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.verbs._words import count

if TYPE_CHECKING:
    from mrp.lab.mean import Mean


def maskgraph_words(parser: argparse.ArgumentParser) -> None:
    """Data, masks, and how closely to look."""
    parser.add_argument("data", metavar="DATA", help="what data.train takes, or 'toy': a world whose graph is known")
    parser.add_argument("--ratios", type=float, nargs="+", metavar="R", help="mask ratios (default: .1 to .95)")
    parser.add_argument(
        "--unit",
        type=count,
        nargs="+",
        default=[4],
        metavar="PIXELS",
        help="side of what is hidden as one (default: 4)",
    )
    parser.add_argument("--images", type=count, metavar="N", help="default: 2000, of the toy 1000")
    parser.add_argument("--masks", type=count, metavar="N", help="of each ratio (default: 4, of the toy all)")
    parser.add_argument("--features", type=count, metavar="K", help="k in Theorem 4.2 (default: 64, of the toy 2)")
    parser.add_argument(
        "--noise", type=float, metavar="S", help="through which views are seen (default: by --candidates)"
    )
    parser.add_argument(
        "--candidates", type=float, default=8.0, metavar="N", help="images that a noisy one could be (default: 8)"
    )
    parser.add_argument(
        "--size", type=count, default=32, metavar="PIXELS", help="images are resized to it (default: 32)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of masks and noise (default: 0)")
    _add_out(parser, "maskgraph")


def maskgraph(options: argparse.Namespace) -> None:
    """Measure, print what each criterion would choose, write."""
    from rich.console import Console
    from rich.table import Table

    from mrp.lab import graph, maskgraph_plots
    from mrp.lab import maskgraph as lab

    toy = options.data == lab.TOY
    result = lab.run(
        lab.Options(
            data=options.data,
            ratios=tuple(options.ratios or lab.RATIOS),
            units=tuple(options.unit),
            images=options.images or (1000 if toy else 2000),
            masks=options.masks or (20 if toy else 4),
            features=options.features or (2 if toy else 64),
            noise=options.noise,
            candidates=options.candidates,
            size=options.size,
            seed=options.seed,
        )
    )
    table = Table(title=f"{options.data}: which ratio each criterion would choose", title_justify="left")
    for column in ("unit", "criterion", "best", "not told apart from it"):
        table.add_column(column)
    for unit in result.units:
        for name, (best, *others) in result.choices(unit).items():
            wanted = f"{graph.MEASURES[name]} ({'most' if name.startswith('same') else 'least'})"
            table.add_row(str(unit), wanted, f"{best:.2f}", ", ".join(f"{ratio:.2f}" for ratio in others) or "-")
    Console(width=120).print(table)
    if toy:
        print("the exact values lie within the stated error for {} of {} estimates".format(*result.within()))
    _say_written(maskgraph_plots.write(result, options.out))


def bounds_words(parser: argparse.ArgumentParser) -> None:
    """A run, and how closely to look."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run of MAE or U-MAE")
    parser.add_argument("--images", type=count, default=512, metavar="N", help="held-out images (default: 512)")
    parser.add_argument(
        "--descent", type=count, default=150, metavar="N", help="steps in search of the decoder's error (default: 150)"
    )
    _add_out(parser, "bounds")


def bounds(options: argparse.Namespace) -> None:
    """Evaluate the inequalities at every checkpoint, print the table, write."""
    from rich.console import Console
    from rich.table import Table

    from mrp.lab import bounds as lab
    from mrp.lab import bounds_plots

    result = lab.run(options.run, options.images, options.descent)
    table = Table(
        title=f"{options.run}: left side minus right side, which should not be negative", title_justify="left"
    )
    table.add_column("step")
    for name in lab.GAPS.values():
        table.add_column(name)
    for row in result.rows:
        gaps = [f"{gap} ({gap.verdict})" for gap in row.gaps.values()]
        table.add_row(str(row.step), *gaps)
    Console(width=150).print(table)
    _say_written(bounds_plots.write(result, options.out))


def coverage_words(parser: argparse.ArgumentParser) -> None:
    """Runs, and how closely to look."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders of runs on the same data set")
    parser.add_argument("--images", type=count, default=512, metavar="N", help="held-out images (default: 512)")
    parser.add_argument("--mosaics", type=count, default=512, metavar="N", help="default: 512")
    parser.add_argument(
        "--train",
        type=count,
        default=5000,
        metavar="N",
        help="images to fit a head to, where there is none (default: 5000)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of mosaics and random orders (default: 0)")
    _add_out(parser, "coverage")


def coverage(options: argparse.Namespace) -> None:
    """Measure every run on the same images, print the table, write."""
    from rich.console import Console
    from rich.table import Table

    from mrp.lab import coverage as lab
    from mrp.lab import coverage_plots

    asked = lab.Options(tuple(options.runs), options.images, options.mosaics, options.train, options.seed)
    rows, examples = lab.run(asked)
    table = Table(title="class-activation maps: means over images, and where they differ from the first run")
    table.add_column("measure")
    for row in rows:
        table.add_column(f"{row.run} ({row.objective}, {row.head} head)")
    for name, title in lab.MEASURES.items():
        cells = [f"{row.measures[name]}{_star(row.beyond_first[name])}" for row in rows]
        table.add_row(title, *cells)
    Console(width=max(100, 60 + 30 * len(rows))).print(table)
    print("*: the difference from the first run, image by image, is beyond its 95 % interval")
    _say_written(coverage_plots.write(asked, rows, examples, options.out))


def _star(difference: Mean) -> str:
    return " *" if abs(difference.value) > difference.error else ""


def _add_out(parser: argparse.ArgumentParser, name: str) -> None:
    default = Path("runs/lab") / name
    parser.add_argument(
        "--out", type=Path, default=default, metavar="FOLDER", help=f"for the results (default: {default})"
    )


def _say_written(paths: list[Path]) -> None:
    for path in paths:
        print(f"written to {path}")
