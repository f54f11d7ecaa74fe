"""The exceptions that the command line turns into one line: each ends a run before it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConfigError(ValueError):
    """Something the user can fix: one line that says what is wrong, where, and what to do."""


class FaultElsewhere(ConfigError):
    """The fault of another process, which ends this one too; that process is the first to report it."""


class ProcessLost(RuntimeError):
    """Another process of the run is gone and has left no word of why, so this one cannot go on either."""


class Stopped(RuntimeError):
    """The run ended itself because going on would harm or waste it; what it had is saved."""


class Preempted(RuntimeError):
    """The run was asked to end before it was complete; it is saved, and the same command goes on."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def reading(what: object, remedy: str) -> Iterator[None]:
    """Makes one line of a file that cannot be read inside the block: which one, why, and the remedy."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ConfigError(f"{what}: cannot be read: {reason}; {remedy}") from None


@contextmanager
def writing(what: object, remedy: str) -> Iterator[None]:
    """Makes one line of what cannot be written inside the block: what, why, and the remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what}: cannot be written: {error.strerror or error}; {remedy}") from None


def check_out(path: Path, *endings: str) -> None:
    """Refuses a file of `--out` that cannot be written, before anything is computed."""
    if endings and path.suffix not in endings:
        raise ConfigError(f"--out: '{path}' was given; allowed: a name that ends in {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out: the folder {path.absolute().parent} does not exist; make it, or give another")
