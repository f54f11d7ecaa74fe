"""`mrp recipes`."""

from __future__ import annotations

import argparse

HELP = "list the recipes that come with mrp"
EXAMPLE = "mrp recipes"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds nothing."""


def run(options: argparse.Namespace) -> None:
    """Prints the name of each recipe and the first line of its head comment."""
    from mrp.run import recipes

    for path in sorted(recipes().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{path.stem:<32} {first.lstrip('# ')}")
