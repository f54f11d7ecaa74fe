"""Tells all processes why one of them has ended, so that none of them reports a lost connection instead."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrp import ending, outside
from mrp.config import FaultElsewhere, Preempted, ProcessLost, Stopped
from mrp.files import write_atomically

FILE = ".fault"  # in the run's folder
_PATIENCE = 5.0  # seconds in which the other process has to have written its fault down
_GONE = re.compile(  # what gloo, NCCL and torch's store say where the other end does not answer
    r"connection (was |was likely )?(closed|reset|refused)|broken pipe|remote process|ncclRemoteError|pair closure|"
    r"timed out waiting \d+ms for (recv|send)|socket timeout|wait timeout after|communicator was aborted",
    re.IGNORECASE,
)
_MOST = 400  # characters of what torch says of a lost connection; NCCL's reason comes last


def forget(folder: Path) -> None:
    """Removes what an earlier start has left; comes before any process may fail."""
    (folder / FILE).unlink(missing_ok=True)


def told(folder: Path) -> str | None:
    """Returns why a process of this start has ended, if one has written it down."""
    with suppress(OSError):
        return (folder / FILE).read_text(encoding="utf-8")
    return None


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
        gone = _says_gone(error)
        if processes > 1 and not gone and (line := ending.line_of(error)) is not None:
            if folder.is_dir() and told(folder) is None:
                with suppress(OSError):
                    write_atomically(folder / FILE, line)
        elif processes > 1 and isinstance(error, RuntimeError):  # torch's, perhaps since another process has ended
            if (line := _told_within(folder, _PATIENCE if gone else 0.0)) is not None:
                raise FaultElsewhere(line) from error
            if gone:
                raise _lost(folder, error) from error
        raise


@contextmanager
def lost(folder: Path, processes: int) -> Iterator[None]:
    """Makes one line of a lost connection also before the folder is this run's: what is written there is older."""
    try:
        yield
    except (Stopped, Preempted, ProcessLost):
        raise
    except RuntimeError as error:
        if processes > 1 and _says_gone(error):
            raise _lost(folder, error) from error
        raise


def _says_gone(error: Exception) -> bool:
    """Returns whether torch says that another process is gone; an error in data or a file of the user's may sound so.

    Such a file may also ask torch itself to exchange something.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or text.startswith("Caught ") or not _GONE.search(text):
        return False  # "Caught" is torch's word for what a worker of the loader raised
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return outside.blamed(error) is None or "/torch/distributed/" in raised_in


def _told_within(folder: Path, seconds: float) -> str | None:
    """Returns why a process of this start has ended, which may be written a moment after the connection is lost."""
    deadline = time.monotonic() + seconds
    while (line := told(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return line


def _lost(folder: Path, error: RuntimeError) -> ProcessLost:
    reason = " ".join(str(error).split())[:_MOST]
    return ProcessLost(
        f"{folder}: another process of this run is gone: it was killed, its machine is lost or does not answer, or it "
        f"has printed its own fault ({reason}); the same command goes on from the last checkpoint"
    )
