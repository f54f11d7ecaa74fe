"""`mrp evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp import imports
from mrp.verbs import _words

HELP = "measure classifiers on one or several test sets, as they are: top-1, top-5, per class, tags, ReaL, corruptions"
EXAMPLE = "mrp evaluate mae_finetuned_vit_base.pth --test val=/data/imagenet/val --test v2=/data/imagenetv2,by_index"


def words(parser: argparse.ArgumentParser) -> None:
    """Classifiers, test sets, what their classes are."""
    parser.add_argument(
        "weights", nargs="+", metavar="WEIGHTS", help="fine-tuned runs, checkpoints or classifiers to import; and "
        "data.test=PATH (default: the run's own), data.labels=TABLE, data.size=N, data.classes=LIST, machine.workers=N",
    )  # fmt: skip
    parser.add_argument(
        "--test", action="append", default=[], metavar="NAME=PATH[,HOW]", help="a test set (may be repeated); HOW: "
        "by_index (its classes are called by numbers, as ImageNet-V2's), a file with lines 'TEST_CLASS CLASS', limited "
        "(only its own classes are possible answers, as for ImageNet-A and -R), corruptions (like ImageNet-C, which is "
        "recognised without the word)",
    )  # fmt: skip
    parser.add_argument(
        "--real", metavar="FILE", help="ReaL labels of the first test set: a JSON list with a list per validation image"
    )
    parser.add_argument(
        "--head", metavar="FILE", help="the names of the classifier's classes, one per line in its order "
        "(default: the names in the run or with the weights, or of the folders of a test set with all classes)",
    )  # fmt: skip
    _words.add_again(parser)
    _words.add_weights(parser, dest="which")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where evaluate.json, .md, .tex and .png go (default: only print a table)"
    )
    _words.add_processes(parser, "processes on this machine that read images")
    _words.add_json(parser)
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Measures what is missing, prints the table, and writes it if asked to."""
    with imports.undisturbed():
        from mrp import api

    given = [*options.weights, *options.overrides]
    overrides = [word for word in given if "=" in word and not Path(word).exists()]
    found = api.evaluate(
        [word for word in given if word not in overrides], *overrides, tests=options.test, real=options.real,
        head=options.head, weights=options.which, again=options.again, out=options.out,
    )  # fmt: skip
    if found is not None:
        _words.print_page(found.page, options.json, found.folder if options.out else None)
