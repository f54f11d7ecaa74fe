"""`mrp check`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mrp import imports
from mrp.verbs import _words

HELP = "try whether a file of your own (method, source, augmentation, evaluator, optimizer, tracker) does what it must"
EXAMPLE = "mrp check ./mine.py"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a file, options of its part."""
    parts = "Objective, Source, Augmentation, Evaluator, Optimizer or Tracker"
    parser.add_argument("file", metavar="FILE", help=f"a Python file that defines Config and {parts}")
    _words.add_key_values(parser, "options of the part")
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Tries everything, prints a table, and ends with exit code 2 where a check failed."""
    from rich.table import Table

    with imports.undisturbed():
        from mrp.check.files import check
    from mrp.config import ConfigError

    table = Table("part", "check", "", "why, and what to do", title=options.file)
    failed, told = 0, list[dict[str, str]]()
    for kind, outcome in check(Path(options.file), _words.data_words(options)):
        told.append({"part": kind, **asdict(outcome)})
        failed += outcome.status == "failed"
        why = "; ".join(filter(None, (outcome.detail, outcome.remedy)))
        table.add_row(kind, outcome.check, outcome.status, why)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        _words.print_table(table)
    if failed:
        raise ConfigError(f"{options.file}: {failed} of {len(told)} checks failed; mend what the table names")
    if not options.json:
        print(f"{options.file}: {len(told)} checks, none failed")
