"""`mrp lab multiview`: its words and what runs it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mrp.lab.words import add_out

HELP = "which features mask-reconstruction pretraining and supervised learning capture"
TOY = ("k=4", "d=27", "P=9", "m=10", "samples=100", "tests=100", "seeds=2", "steps=60", "steps_scratch=40")


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the constants, and what to do with them."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value", help="constants, such as mu=0.3")
    add_out(parser, "multiview")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sweep", metavar="NAME", help="only all methods over one constant: mu, theta, ...")
    what.add_argument("--map", action="store_true", help="only the teacher's setting over theta and m")
    what.add_argument("--grid", action="store_true", help="only every objective with every optimizer, at three lengths")
    what.add_argument("--diversity", action="store_true", help="only pretraining on some of the classes, tuning on all")
    what.add_argument("--render", type=Path, metavar="FOLDER", help="write the data as images, for 'mrp pretrain'")
    what.add_argument("--constants", action="store_true", help="show all constants and their values")
    parser.add_argument("--toy", action="store_true", help="a comparison of a size for tests, too small for the theory")


def run(options: argparse.Namespace) -> None:
    """Runs what was asked for: by default the comparison, and unless it is a toy the sweep over mu and the map."""
    from mrp.lab.multiview.constants import read

    constants = read([*(TOY if options.toy else ()), *options.overrides])
    if options.constants:
        print("\n".join(f"{name}={value}" for name, value in constants.model_dump(mode="json").items()))
        return
    from mrp.lab.multiview import output
    from mrp.lab.multiview.render import render

    began = time.monotonic()
    if options.render:
        for split, num in render(constants, options.render).items():
            print(f"{options.render / split}: {num} images in {constants.k} classes")
    elif options.sweep:
        output.sweep(constants, options.sweep, options.out)
    elif options.grid:
        output.objectives_by_optimizers(constants, options.out)
    elif options.diversity:
        output.pretrain_on_some_classes(constants, options.out)
    elif options.map:
        output.map_pretraining(constants, options.out)
    else:
        output.compare(constants, options.out)
        if not options.toy:
            output.sweep(constants, "mu", options.out)
            output.map_pretraining(constants, options.out)
    print(f"{time.monotonic() - began:.0f} s")
