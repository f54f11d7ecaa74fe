"""`mrp lab maskgraph`: its words and what runs it."""

from __future__ import annotations

import argparse

from mrp.lab.words import add_out, chosen, count, print_table

HELP = "how masks connect images: edges within classes, label error, eigenvalues, by mask ratio and unit"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the data, the masks, and the size of the sample."""
    add = parser.add_argument
    add("data", metavar="DATA", help="what data.train takes, or 'toy': a world whose graph is known")
    add("--ratios", type=float, nargs="+", metavar="R", help="mask ratios (default: .1 to .95)")
    add("--unit", dest="units", type=count, nargs="+", metavar="PIXELS", help="side of a mask unit (default: 4)")
    add("--images", type=count, metavar="N", help="images (default: 2000, of the toy 500)")
    add("--masks", type=count, metavar="N", help="masks per ratio (default: 4, of the toy all)")
    add("--features", type=count, metavar="K", help="k in Theorem 4.2 (default: 64, of the toy 2)")
    add("--noise", type=float, metavar="S", help="the noise through which views are seen (default: by --candidates)")
    add("--candidates", type=float, metavar="N", help="how many images a noisy one could be (default: 8)")
    add("--size", type=count, metavar="PIXELS", help="images are resized to this side (default: 32)")
    add("--seed", type=int, metavar="N", help="seed of masks and noise (default: 0)")
    add_out(parser, "maskgraph")


def run(options: argparse.Namespace) -> None:
    """Measures, prints what each criterion would choose, and writes the results."""
    from mrp.lab import figures
    from mrp.lab.maskgraph import experiment, graph, plots

    toy = options.data == experiment.TOY
    defaults = experiment.TOY_DEFAULTS if toy else {}
    result = experiment.run(experiment.Options(**(defaults | chosen(options, experiment.Options))))
    rows = []
    for unit in result.units:
        for name, (best, *others) in result.choices(unit).items():
            wanted = f"{graph.MEASURES[name]} ({'most' if name == 'same_class_views' else 'least'})"
            rows.append((str(unit), wanted, f"{best:.2f}", ", ".join(f"{ratio:.2f}" for ratio in others) or "-"))
    columns = ("unit", "criterion", "best", "not told apart from it")
    print_table(f"{options.data}: which ratio each criterion would choose", columns, rows, width=120)
    if toy:
        print("the exact values lie within the stated error for {} of {} estimates".format(*result.within()))
        for trend, worlds in (result.worlds or {}).items():
            print(f"{trend} at every step of the ratio: {worlds} worlds")
    pictures = {"measures.png": plots.draw_measures(result), "spectra.png": plots.draw_spectra(result)}
    figures.write(options.out, "results.json", result.as_data(), pictures)
