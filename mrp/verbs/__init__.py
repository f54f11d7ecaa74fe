"""The verbs of the command line, a file each: HELP, EXAMPLE, words(parser), run(options).

Nothing heavy is imported before a verb runs, so that `mrp --help` answers at once.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "demo",
    "pretrain",
    "finetune",
    "probe",
    "features",
    "compare",
    "report",
    "replay",
    "import",
    "export",
    "config",
    "shards",
    "recipes",
    "submit",
    "lab",
)


def find(name: str) -> ModuleType:
    """The module of a verb."""
    return importlib.import_module(f"{__name__}.{name}_" if name == "import" else f"{__name__}.{name}")
