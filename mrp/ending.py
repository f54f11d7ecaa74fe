"""How the last start of a run has ended: a word in its folder, which `mrp.status` reads."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mrp import outside
from mrp.config import ConfigError, Preempted
from mrp.files import write_atomically
from mrp.folder import ENVIRONMENT, now, starts_of
from mrp.locking import Holder

FINISHED, STOPPED, PREEMPTED, FAILED = "finished", "stopped", "preempted", "failed"
STALLED = 4  # the exit code of a process that the watchdog has given up
GIVEN_UP = "is given up"  # what its last heartbeat says it does
BY_FILE = "the file"  # how a request that is a file begins
_MOST = 500  # characters of a reason
_LAST_WORDS = 5.0  # seconds
_NO_COMPILER = re.compile(
    r"No working C\+\+ compiler found|Failed to find C compiler"
)  # torch on a CPU, triton on a GPU


@contextlib.contextmanager
def noted(folder: Path, asked: Callable[[], str | None]) -> Iterator[None]:
    """Notes how the block ends; a process that is killed inside it leaves no word, and a lock that nobody holds."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Preempted | KeyboardInterrupt):
            note(folder, kind_of_request(asked()), asked() or "another process was asked to end")
        elif isinstance(error, ValueError | RuntimeError) and type(error).__module__.startswith("mrp."):
            note(folder, FAILED, str(error))  # a sentence for the user
        else:
            note(folder, FAILED, line_of(error) or f"{type(error).__name__}: {error}")
        raise
    note(folder, FINISHED)


def line_of(error: BaseException) -> str | None:
    """Returns the one line that a user gets of what can be mended; None of a fault of ours, which is a traceback."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; mend it and run the same command again"
    if _NO_COMPILER.search(str(error)):
        return (
            "machine.compile: torch finds no compiler, without which it compiles no step; install one (gcc; on a Mac "
            "xcode-select --install), or set machine.compile=no"
        )
    where_outside = outside.blamed(error)
    return where_outside and f"{where_outside}: {type(error).__name__}: {error}; mend the file"


def note(folder: Path, state: str, why: str = "") -> None:
    """Writes into the record of a run's last start how it has ended, if this is the process that holds its lock."""
    if Holder.of(folder) == Holder.here() and (starts := starts_of(folder)):
        starts[-1]["end"] = {"time": now(), "state": state, "why": " ".join(why.split())[:_MOST]}
        with contextlib.suppress(OSError):
            write_atomically(folder / ENVIRONMENT, json.dumps({"starts": starts}, indent=1))


def within_seconds(write: Callable[[], None]) -> None:
    """Writes the last words of a process that then ends; after some seconds without them: its disk may stand still."""
    words = threading.Thread(target=write, name="last words", daemon=True)
    words.start()
    words.join(_LAST_WORDS)


def kind_of_request(asked: str | None) -> str:
    """Returns whether a person has stopped the run, or a machine that may start it again."""
    return STOPPED if asked is not None and asked.startswith((BY_FILE, signal.SIGINT.name)) else PREEMPTED
