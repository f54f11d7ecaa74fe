"""Words that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path


def count(word: str) -> int:
    """A whole number from 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number from 1")
    return int(word)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """A recipe, and values that replace its own."""
    parser.add_argument("recipe", help="a YAML file, or the name of a recipe ('mrp recipes' lists them)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="values that replace the recipe's"
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Where the run is written."""
    parser.add_argument("--folder", dest="run", metavar="FOLDER", help="the run's folder (default: runs/RECIPE)")


def add_processes(parser: argparse.ArgumentParser, use: str) -> None:
    """How many processes."""
    parser.add_argument("--processes", type=count, default=1, metavar="N", help=f"{use} (default: 1)")


def folder(options: argparse.Namespace) -> Path:
    """The run's folder, as given or after the recipe."""
    return Path(options.run or Path("runs") / Path(options.recipe).stem)


def data_words(options: argparse.Namespace) -> list[str]:
    """The key=value words of a verb that takes other data, and no other words."""
    from mrp.config import ConfigError

    unknown = [word for word in options.overrides if "=" not in word]
    if unknown:
        raise ConfigError(f"mrp {options.verb} does not know {' '.join(unknown)}; see 'mrp {options.verb} --help'")
    words: list[str] = options.overrides
    return words
