"""`mrp features`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp.verbs import _words

HELP = "write the features of a run's images to a file, with their names and labels"
EXAMPLE = "mrp features runs/demo --out features.npy"


def words(parser: argparse.ArgumentParser) -> None:
    """A run or checkpoint, a file, which features."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, one of its checkpoints, or weights to import")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="other data (data.train, test, classes, fraction, size), or machine.workers",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=".npy, with a .jsonl beside it; or .parquet")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="of the run's data (default: test)")
    parser.add_argument("--layer", type=_words.count, metavar="N", help="counted from 1 (default: the last)")
    parser.add_argument("--pooling", choices=("class", "mean"), help="of its tokens (default: the backbone's own)")
    parser.add_argument("--weights", choices=("student", "teacher", "average"), help="whose (default: the run's own)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--cache", metavar="FOLDER", help="keep the features there too (default: RUN/features)")
    _words.add_processes(parser, "processes on this machine that read features")


def run(options: argparse.Namespace) -> None:
    """Writes the file."""
    from mrp import api

    count, width = api.features(
        options.run, Path(options.out), options.split, options.layer, options.pooling, options.weights, options.step,
        _words.data_words(options), options.cache,
    )  # fmt: skip
    if count:  # the first process has written it
        print(f"written to {options.out}: {count:,} images, {width} numbers each")
