"""`mrp certify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrp import imports, progress
from mrp.verbs import _words

HELP = "train a recipe eager and compiled, in fp32 and bf16, and say whether the losses stay together"
EXAMPLE = "mrp certify mae_vit_base_in1k data.train=/data/in1k/train --steps 3000"
_NOT_WITHIN = 1


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, a folder, and how much to train."""
    _words.add_recipe(parser)
    _words.add_folder(parser, default="runs/certify-RECIPE")
    parser.add_argument(
        "--steps", type=_words.count, default=3000, metavar="N", help="steps of each run (default: 3000)"
    )
    parser.add_argument("--seeds", type=_words.count, default=2, metavar="N", help="seeds per way (default: 2)")
    parser.add_argument(
        "--way", action="append", default=[], dest="ways", metavar="NAME",
        help="what to compare with eager fp32 (may be repeated): 'eager bf16', 'compiled bf16', 'ddp bf16' or "
        "'fsdp2 bf16' (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", dest="of_each", type=_words.count, default=1, metavar="N",
        help="processes that DDP and FSDP2 are tried with (default: 1, which leaves these two out)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Trains in every way, prints and draws the gaps; the exit code is 1 where one leaves the seeds' spread."""
    from rich.table import Table

    with imports.undisturbed():
        from mrp.certify import FILE, certify

    folder = Path(options.folder or f"runs/certify-{Path(options.recipe).stem}")
    gaps, size = certify(
        options.recipe, options.overrides, folder, options.steps, options.seeds, options.of_each, options.ways,
        progress.tell,
    )  # fmt: skip
    title = f"{options.recipe}: loss minus that of eager fp32, {options.steps:,} steps, {options.seeds} seeds"
    table = Table("way", "largest gap", "at steps", "spread of the seeds there", "speed", "", title=title)
    for gap in gaps:
        worst = gap.worst
        table.add_row(
            gap.way, f"{gap.gaps[worst]:+.2e}", f"{worst * size + 1:,} to {(worst + 1) * size:,}",
            f"{gap.spread[worst]:.2e}", f"{gap.speed:.2f} x", "within" if gap.within else "OUTSIDE",
        )  # fmt: skip
    _words.print_table(table)
    if options.of_each == 1 and not options.ways:
        progress.tell("DDP and FSDP2 were not tried; --processes 2 tries them")
    from mrp.report.plots import gap_curves  # here, since the result above must not need matplotlib

    picture = folder / "certify.png"
    gap_curves(gaps, size, picture)
    print(f"written to {folder / FILE} and {picture}")
    sys.stdout.flush()
    if outside := [gap.way for gap in gaps if not gap.within]:
        print(f"not certified: {', '.join(outside)}", file=sys.stderr)
        sys.exit(_NOT_WITHIN)
