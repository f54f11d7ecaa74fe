"""Tells all processes why one of them has ended, so that none of them reports a lost connection instead."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrp import outside
from mrp.config import ConfigError, FaultElsewhere, Preempted, ProcessLost, Stopped
from mrp.files import write_atomically

FILE = ".fault"  # in the run's folder
_PATIENCE = 5.0  # seconds in which the other process has to have written its fault down
_CONNECTION_LOST = re.compile(
    r"connection (closed|reset|refused|was closed)|broken pipe|socket|nccl|remote process", re.IGNORECASE
)
_MOST = 200  # characters of what torch says of a lost connection


def forget(folder: Path) -> None:
    """Removes what an earlier start has left; comes before any process may fail."""
    (folder / FILE).unlink(missing_ok=True)


def told(folder: Path) -> str | None:
    """Returns why a process of this start has ended, if one has written it down."""
    with suppress(OSError):
        return (folder / FILE).read_text(encoding="utf-8")
    return None


def line_of(error: BaseException) -> str | None:
    """Returns the one line that a user gets of what can be mended; None of a fault of ours, which is a traceback."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; mend it and run the same command again"
    where_outside = outside.blamed(error)
    return where_outside and f"{where_outside}: {type(error).__name__}: {error}; mend the file"


@contextmanager
def shared(folder: Path, processes: int) -> Iterator[None]:
    """Writes a fault of this process into the run's folder, or reads there why a connection was lost.

    So every process ends with the same line and the same exit code. Where the other one was killed, or has a fault of
    ours, nothing is written: one line says that it is gone.
    """
    try:
        yield
    except (Stopped, Preempted):  # all processes end alike
        raise
    except Exception as error:
        if processes > 1 and isinstance(error, RuntimeError) and _CONNECTION_LOST.search(str(error)):
            raise _explained(folder, error) from None
        if processes > 1 and (line := line_of(error)) is not None and folder.is_dir() and told(folder) is None:
            with suppress(OSError):
                write_atomically(folder / FILE, line)
        raise


def _explained(folder: Path, lost: RuntimeError) -> Exception:
    """Returns what has ended the other process, or that nobody knows."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if (line := told(folder)) is not None:
            return FaultElsewhere(line)
        time.sleep(0.1)
    reason = str(lost).splitlines()[0].partition(". ")[0][:_MOST]
    return ProcessLost(
        f"{folder}: another process of this run is gone: it was killed, its machine is lost, or it has printed its own "
        f"fault ({reason}); the same command goes on from the last checkpoint"
    )
