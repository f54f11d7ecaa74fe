"""`mrp report`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mrp.verbs import _words

HELP = "show a run, or several together, as one HTML page: what happened, curves, results, pictures"
EXAMPLE = "mrp report runs/demo"
NAME = "report.html"  # of the page about several runs
_PAUSE = 30  # seconds between two writings of a run that goes on
_SILENCE = 1800  # seconds; a run on another machine that has been silent for so long is no longer watched


def words(parser: argparse.ArgumentParser) -> None:
    """Runs, checkpoints, weights; where the page goes, and how often."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, one of its checkpoints, or imported weights"
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"the page (default: {NAME} in the run's folder; of several runs, in this folder)"
    )
    parser.add_argument(
        "--watch", nargs="?", type=_words.count, const=_PAUSE, metavar="SECONDS",
        help=f"write the page anew every so many seconds (default: {_PAUSE}), until no run is training any more",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Writes the page, once or until the runs have ended."""
    paths = [Path(run) for run in options.runs]
    out = None if options.out is None else Path(options.out)
    while True:
        goes_on = options.watch is not None and _any_alive(paths)
        written = draw(paths, out, options.watch if goes_on else None)
        print(f"written to {written}", flush=True)
        if not goes_on:
            return
        time.sleep(options.watch)


def draw(paths: Sequence[Path], out: Path | None = None, again: int | None = None) -> Path:
    """Writes the page about one run, or about several together, and returns its file."""
    from mrp.config import ConfigError, check_out
    from mrp.files import write_atomically
    from mrp.report import single, together
    from mrp.report.told import Told

    if out is None:
        out = Told.of(paths[0]).out if len(paths) == 1 else Path(NAME)
    elif out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; give a file, such as {out / NAME}")
    else:
        check_out(out)
    text = single.write(paths[0], again) if len(paths) == 1 else together.write(paths, again)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    return out


def _any_alive(paths: Sequence[Path]) -> bool:
    """Returns whether a run goes on; of one on another machine, whether it has shown a sign of life lately."""
    from mrp.report.told import Told
    from mrp.status import UNKNOWN

    found = [status for path in paths if (status := Told.of(path).status)]  # imported weights have none
    return any(
        one.is_alive or (one.state == UNKNOWN and one.seen is not None and time.time() - one.seen < _SILENCE)
        for one in found
    )
