"""`mrp lab`: experiments on the papers' claims, each in a folder of `mrp/lab`."""

from __future__ import annotations

import argparse
import importlib

HELP = (
    "run an experiment on the theory of pretraining: multiview, maskgraph, ratio, bounds, coverage; "
    "claims gives the verdicts"
)
EXAMPLE = "mrp lab multiview"
LABS = {
    name: importlib.import_module(f"mrp.lab.{name}.command")
    for name in ("maskgraph", "ratio", "bounds", "coverage", "multiview", "claims")
}


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the words of each experiment."""
    labs = parser.add_subparsers(dest="lab", required=True, metavar="LAB")
    for name, lab in LABS.items():
        lab.words(labs.add_parser(name, help=lab.HELP, description=lab.HELP[0].upper() + lab.HELP[1:] + "."))


def run(options: argparse.Namespace) -> None:
    """Runs one experiment."""
    LABS[options.lab].run(options)
