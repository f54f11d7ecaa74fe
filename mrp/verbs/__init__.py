"""The verbs of the command line: one file each, with HELP, EXAMPLE, words(parser) and run(options).

A file imports nothing heavy before its verb runs, so that `mrp --help` answers at once.
"""

from __future__ import annotations

import argparse
from types import ModuleType

from mrp.registry import Registry
from mrp.verbs._words import add_quiet

VERBS = Registry("verb", __name__, ("HELP", "EXAMPLE", "words", "run"))
_FIRST = (
    "demo",
    "pretrain",
    "finetune",
    "probe",
    "judge",
    "evaluate",
    "report",
    "runs",
)  # in the help; the others follow

_SAY_NOTHING = ("completion", "recipes")


def names() -> list[str]:
    """Returns the verbs in the order of the help."""
    order = dict.fromkeys((*_FIRST, *sorted(VERBS.names())))
    return list(order)


def describe(name: str, parser: argparse.ArgumentParser) -> None:
    """Adds a verb's words to its parser, and what every verb takes that says anything beside its results."""
    find(name).words(parser)
    if name not in _SAY_NOTHING:
        add_quiet(parser)


def find(name: str) -> ModuleType:
    """Returns the module of a verb."""
    return VERBS.find(name)
