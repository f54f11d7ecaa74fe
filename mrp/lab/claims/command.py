"""`mrp lab claims`: its words and what runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "the table of the papers' claims: what was predicted, what was measured, what can be said"


def words(parser: argparse.ArgumentParser) -> None:
    """Where results are, and where the table goes."""
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="that holds lab/NAME, study, multiview_vit and runs by their recipes' names (default: runs)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/lab/claims.md"),
        metavar="FILE",
        help="the page; its numbers go beside it, as JSON (default: runs/lab/claims.md)",
    )


def run(options: argparse.Namespace) -> None:
    """Judge every claim by the results there are, print the verdicts, write the page and its numbers."""
    from rich.console import Console
    from rich.table import Table

    from mrp.config import ConfigError
    from mrp.lab.claims import page
    from mrp.lab.claims.results import Results

    if options.results is not None and not options.results.is_dir():
        raise ConfigError(f"--results: there is no folder {options.results}")
    if options.out.suffix != ".md":
        raise ConfigError(f"--out: {options.out} is no page; give a name that ends in .md")
    record = page.collect(Results(options.results or Path("runs")))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    numbers = options.out.with_suffix(".json")
    numbers.write_text(page.as_json(record), encoding="utf-8")
    written = page.from_json(numbers)  # so that the page follows from the file, to the last digit
    options.out.write_text(page.render(written), encoding="utf-8")
    table = Table("", "claim", "verdict", title="What the results say of the papers' claims", title_justify="left")
    judged = page.verdicts(written)
    for place, claim in enumerate(page.CLAIMS, start=1):
        verdict, why = judged[claim.key]
        table.add_row(str(place), claim.statement, f"{verdict} ({why})" if why else verdict)
    Console(width=140).print(table)
    print(f"written to {options.out}\nwritten to {numbers}")
