"""`mrp lab claims`: its words and what runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp.lab.words import print_table

HELP = "the table of the papers' claims: what was predicted, what was measured, what can be said"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of the results, and the page to write."""
    results = (
        "the folder of lab/NAME, study, multiview_vit, planted_vit and runs by their recipes' names (default: runs)"
    )
    parser.add_argument("--results", type=Path, default=Path("runs"), metavar="FOLDER", help=results)
    page = "the page; its numbers go beside it, as JSON (default: runs/lab/claims.md)"
    parser.add_argument("--out", type=Path, default=Path("runs/lab/claims.md"), metavar="FILE", help=page)
    keep = "an earlier page's JSON; its numbers stand in for the claims that the results say nothing about"
    parser.add_argument("--keep", type=Path, metavar="FILE", help=keep)


def run(options: argparse.Namespace) -> None:
    """Measures every claim on the results, prints the verdicts, and writes the page and its numbers."""
    from mrp.config import ConfigError
    from mrp.lab.claims import page
    from mrp.lab.claims.results import Results

    if not options.results.is_dir() and options.results != Path("runs"):
        raise ConfigError(f"--results: there is no folder {options.results}")
    if options.out.suffix != ".md":
        raise ConfigError(f"--out: {options.out} is no page; give a name that ends in .md")
    record = page.collect(Results(options.results))
    if options.keep:
        record = record.completed(page.from_json(options.keep))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    json_file = options.out.with_suffix(".json")
    json_file.write_text(page.as_json(record), encoding="utf-8")
    record = page.from_json(json_file)  # so that the page follows from the file, to the last digit
    options.out.write_text(page.render(record), encoding="utf-8")
    rows = []
    for number, claim in enumerate(page.CLAIMS, start=1):
        verdict, reason = record.verdict(claim)
        rows.append((str(number), claim.claim, f"{verdict} ({reason})" if reason else verdict))
    print_table("What the results say of the papers' claims", ("", "claim", "verdict"), rows, width=140)
    print(f"written to {options.out}\nwritten to {json_file}")
