"""What the studies share: their command line, and the processor time that a run has taken over all of its starts."""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrp.config import ConfigError


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser that shows a tool's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(main: Callable[[], None]) -> None:
    """Runs a tool; what its user can mend is one line, with the exit code 2."""
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@contextmanager
def metered(spent: Path) -> Iterator[None]:
    """Adds this process's seconds of processor time in the block to those that a file has of earlier attempts."""
    began = _cpu_seconds()
    earlier = seconds(spent)
    try:
        yield
    finally:
        if spent.parent.exists():
            spent.write_text(str(earlier + _cpu_seconds() - began))


def seconds(spent: Path) -> float:
    """Returns how many seconds of processor time a file says; 0 where there is none."""
    return float(spent.read_text()) if spent.exists() else 0.0


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
