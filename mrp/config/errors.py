"""The three exceptions that the command line turns into one line: each ends a run before it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """Something the user can fix: one line that says what is wrong, where, and what to do."""


class FaultElsewhere(ConfigError):
    """The fault of another process, which ends this one too; that process is the first to report it."""


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
