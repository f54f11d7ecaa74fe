"""`mrp lab`: the papers' claims, each an experiment."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from mrp.verbs import _lab_claims, _lab_multiview, _lab_theory

HELP = "run an experiment on the theory of pretraining: multiview, maskgraph, bounds, coverage; claims judges them"
EXAMPLE = "mrp lab multiview"


class Lab(NamedTuple):
    """One experiment: a line of help, its words, and what runs it."""

    help: str
    words: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def words(parser: argparse.ArgumentParser) -> None:
    """The words of each experiment."""
    labs = parser.add_subparsers(dest="lab", required=True, metavar="LAB")
    for name, lab in LABS.items():
        lab.words(labs.add_parser(name, help=lab.help, description=lab.help[0].upper() + lab.help[1:] + "."))


def run(options: argparse.Namespace) -> None:
    """Run one experiment."""
    LABS[options.lab].run(options)


LABS = {
    "maskgraph": Lab(
        "how masks connect images: edges within classes, label error, eigenvalues, by mask ratio and unit",
        _lab_theory.maskgraph_words,
        _lab_theory.maskgraph,
    ),
    "bounds": Lab(
        "the inequalities of U-MAE's theory at every checkpoint of a run", _lab_theory.bounds_words, _lab_theory.bounds
    ),
    "coverage": Lab(
        "how much of the objects, and how many of them, the class-activation maps of encoders cover",
        _lab_theory.coverage_words,
        _lab_theory.coverage,
    ),
    "multiview": Lab(
        "which features mask-reconstruction pretraining and supervised learning capture",
        _lab_multiview.words,
        _lab_multiview.run,
    ),
    "claims": Lab(
        "the table of the papers' claims: what was predicted, what was measured, what can be said",
        _lab_claims.words,
        _lab_claims.run,
    ),
}
