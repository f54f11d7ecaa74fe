"""`mrp pretrain`."""

from __future__ import annotations

import argparse

from mrp.verbs import _words

HELP = "train a recipe; the same command again goes on where it stopped"
EXAMPLE = "mrp pretrain mae_vit_tiny_cifar10 data.train=cifar-10-binary.tar.gz"


def words(parser: argparse.ArgumentParser) -> None:
    """A recipe, a folder, processes."""
    _words.add_recipe(parser)
    _words.add_folder(parser)
    _words.add_processes(parser, "processes on this machine")


def run(options: argparse.Namespace) -> None:
    """Train a recipe into its folder."""
    from mrp.run import load
    from mrp.train import train

    folder = _words.folder(options)
    train(load(options.recipe, options.overrides, folder), folder)
