"""`mrp judge`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mrp import imports
from mrp.verbs import _words

HELP = "judge weights by a suite: several evaluators on several data sets, with paired tests, as one table"
EXAMPLE = "mrp judge runs/mae runs/umae --suite imagenet imagenet=/data/imagenet"


def words(parser: argparse.ArgumentParser) -> None:
    """Weights, a suite, where its data are."""
    parser.add_argument(
        "weights",
        nargs="+",
        metavar="WEIGHTS",
        help="runs, checkpoints or weights to import; also PLACE=PATH: where data are",
    )
    parser.add_argument(
        "--suite", required=True, metavar="SUITE", help="a YAML file, or a name: small, imagenet, transfer ...; where "
        "no PLACE=PATH is given, a message says which ones the suite needs",
    )  # fmt: skip
    parser.add_argument("--untrained", action="store_true", help="judge the untrained backbones too")
    _words.add_again(parser)
    _words.add_weights(parser, dest="which")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where judge.json, .md, .tex, .png go (default: runs/judge-SUITE)"
    )
    parser.add_argument("--cache", metavar="FOLDER", help="keep the features there (default: RUN/features)")
    parser.add_argument(
        "--head", metavar="FILE", help="the names of a classifier's classes, one per line in its order; needed where "
        "the suite measures classifiers as they are, and neither the run nor a test set with all classes has the names",
    )  # fmt: skip
    _words.add_processes(parser, "processes on this machine that read features")
    _words.add_json(parser)
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Measures what is missing, prints the table and writes it in every form."""
    with imports.undisturbed():
        from mrp import api

    given = [*options.weights, *options.overrides]
    pairs = [word for word in given if re.match(r"[\w.]+=", word) and not Path(word).exists()]
    judged = api.judge(
        [word for word in given if word not in pairs], options.suite, *pairs, weights=options.which,
        untrained=options.untrained, again=options.again, out=options.out, cache=options.cache,
        head=options.head,
    )  # fmt: skip
    if judged is not None:
        _words.print_page(judged.page, options.json, judged.folder)
