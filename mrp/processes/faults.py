"""Tells all processes why one of them has ended, so that none of them reports a lost connection instead."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrp.config import ConfigError, FaultElsewhere, Preempted, Stopped
from mrp.files import write_atomically

FILE = ".fault"  # in the run's folder
_PATIENCE = 5.0  # seconds in which the other process has to have written its fault down
_CONNECTION_LOST = re.compile(
    r"connection (closed|reset|refused|was closed)|broken pipe|socket|nccl|remote process", re.IGNORECASE
)


def forget(folder: Path) -> None:
    """Removes what an earlier start has left; comes before any process may fail."""
    (folder / FILE).unlink(missing_ok=True)


@contextmanager
def shared(folder: Path, processes: int) -> Iterator[None]:
    """Writes a fault of this process into the run's folder, or reads there why a connection was lost.

    So every process ends with the same line and the same exit code, and not with the traceback of a lost connection.
    """
    try:
        yield
    except ConfigError as fault:
        if processes > 1 and folder.is_dir() and not (folder / FILE).exists():
            with suppress(OSError):
                write_atomically(folder / FILE, str(fault))
        raise
    except (Stopped, Preempted):  # all processes end alike
        raise
    except RuntimeError as error:
        if processes == 1 or not _CONNECTION_LOST.search(str(error)):
            raise
        deadline = time.monotonic() + _PATIENCE
        while not (folder / FILE).exists():
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        raise FaultElsewhere((folder / FILE).read_text(encoding="utf-8")) from None
