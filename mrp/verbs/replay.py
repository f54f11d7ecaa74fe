"""`mrp replay`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrp import imports

HELP = "repeat a step that was not finite, alone, and name the module in which the fault arose"
EXAMPLE = "mrp replay runs/mae/incidents/step-00012345"
_NOT_REPEATED = 1


def words(parser: argparse.ArgumentParser) -> None:
    """Adds an incident."""
    parser.add_argument("incident", type=Path, help="a folder in RUN/incidents")


def run(options: argparse.Namespace) -> None:
    """Prints where the fault arose; the exit code is 1 where the step is finite this time."""
    with imports.undisturbed():
        from mrp.replay import replay

    result = replay(options.incident)
    for line in result.lines:
        print(line)
    if not result.repeated:
        sys.stdout.flush()
        sys.exit(_NOT_REPEATED)
