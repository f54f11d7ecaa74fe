"""`mrp features`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp import imports
from mrp.verbs import _words

HELP = "write the features of a run's images to a file, with their names and labels"
EXAMPLE = "mrp features runs/demo --out features.npy"


def words(parser: argparse.ArgumentParser) -> None:
    """A run or checkpoint, a file, which features."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, one of its checkpoints, or weights to import")
    _words.add_key_values(parser, "other data (data.train, test, classes, fraction, size), or machine.workers")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="a .npy file, which gets a .jsonl beside it, or a .parquet file"
    )
    parser.add_argument(
        "--split", choices=("train", "test"), default="test", help="which of the run's data (default: test)"
    )
    parser.add_argument("--layer", type=_words.count, metavar="N", help="the layer, counted from 1 (default: the last)")
    parser.add_argument(
        "--pooling", choices=("class", "mean"), help="how tokens are pooled (default: the backbone's way)"
    )
    _words.add_weights(parser)
    _words.add_step(parser)
    parser.add_argument("--cache", metavar="FOLDER", help="keep the features there too (default: RUN/features)")
    _words.add_processes(parser, "processes on this machine that read features")


def run(options: argparse.Namespace) -> None:
    """Writes the file."""
    with imports.undisturbed():
        from mrp import api

    count, width = api.features(
        options.run, Path(options.out), options.split, options.layer, options.pooling, options.weights, options.step,
        _words.data_words(options), options.cache,
    )  # fmt: skip
    if count:  # the first process has written it
        print(f"written to {options.out}: {count:,} images, {width} numbers each")
