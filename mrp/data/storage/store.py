"""Ranges of bytes from a folder, a web server or an object store: exactly what was asked for, or a fatal error.

What may be over soon (a busy server, a cut connection) is tried again after growing, jittered waits until a deadline;
then the run fails, for a fault of storage is no bad sample.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from mrp import progress
from mrp.config import ConfigError

T = TypeVar("T")

DEADLINE = 300.0  # seconds for which one request is tried again
PIECE = 16 << 20  # bytes of one request for a long file
STALL = 30.0  # seconds without a byte after which a connection is given up
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 20.0
_PATIENCE = 2.0  # seconds of faults after which it is said that they are waited out
_SILENCE = 5.0  # seconds without any answer at a start after which that is said

_said = 0  # lines about waiting in this process


class StorageError(ConfigError):
    """Storage that does not hold, or does not return, what it should."""


class UnreachableError(StorageError):
    """Storage that did not answer in time, or that may not be asked."""


class RefusedError(StorageError):
    """Storage that says that it may not be read."""


class TemporaryError(Exception):
    """A fault that may be gone the next time; the server may have said how many seconds to wait."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Store(ABC):
    """A folder of files somewhere."""

    local = False  # whether files can be read in place
    deadline: float  # seconds after which it is given up
    _gave = False  # whether it has given this process something since it last refused to

    @abstractmethod
    def where(self, name: str) -> str:
        """Returns what to call a file in a message: its path or address."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Returns how many bytes a file has."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns exactly these bytes."""

    def patiently(self, name: str, attempt: Callable[[float], T]) -> T:
        """Returns what `attempt` gives (see `retry`).

        A refusal may pass where something was read before; one that has lasted is believed from then on.
        """
        try:
            found = retry(attempt, self.where(name), self.deadline, self._gave)
        except RefusedError:
            self._gave = False
            raise
        self._gave = True
        return found


def retry(attempt: Callable[[float], T], where: str, deadline: float, gave: bool = False) -> T:
    """Call `attempt` with the time at which it must be over (`time.monotonic`), until it succeeds or that has come.

    A refusal ends it at once, unless the storage `gave` something before: then a limit of requests may be over soon,
    and credentials or a signature that have expired are renewed.
    """
    until, wait, said = time.monotonic() + deadline, _FIRST_WAIT, False
    refused: RefusedError | None = None
    while True:
        try:
            return attempt(until)
        except RefusedError as refusal:
            if not gave:
                raise
            fault, asked = str(refusal), 0.0
            refused = RefusedError(f"{refusal}, still after {deadline:g} seconds")
        except TemporaryError as temporary:
            asked = temporary.wait
            fault = f"{where}: {temporary}"
        pause = max(asked, wait * random.uniform(0.5, 1.5))  # noqa: S311 -- so that not all nodes come at once
        if time.monotonic() + pause > until:
            wish = f" (it asks to wait {asked:g} seconds)" if asked else ""
            raise refused or UnreachableError(
                f"{fault}{wish}, still after {deadline:g} seconds; mend the storage and run the same command again"
            )
        if not said and time.monotonic() + pause > until - deadline + _PATIENCE:
            said = True
            _say(fault, until)
        time.sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT)


@contextlib.contextmanager
def announced(where: str, deadline: float) -> Iterator[None]:
    """Says that an answer is waited for, and until when, if this block takes seconds in which nothing else is said."""
    said = _said

    def say() -> None:
        if _said == said:
            _say(f"{where}: no answer yet", until)

    until, timer = time.monotonic() + deadline, threading.Timer(_SILENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(what: str, until: float) -> None:
    global _said
    _said += 1
    clock = datetime.now() + timedelta(seconds=until - time.monotonic())
    say(f"{what}; trying until {clock:%H:%M:%S}")


def say(what: str) -> None:
    """Says it on stderr, once on each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        progress.put(f"mrp: {what}", sys.stderr)


class LocalStore(Store):
    """A folder on a disk or a network file system."""

    local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, name: str) -> str:
        """Returns the path."""
        return str(self.folder / name)

    def size(self, name: str) -> int:
        """Returns what the file system says."""
        with self._reading(name):
            return (self.folder / name).stat().st_size

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns the bytes by a read at their position."""
        with self._reading(name), (self.folder / name).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), stop - start, start)
        if len(data) != stop - start:
            raise StorageError(f"{self.where(name)}: cut short: it ends before byte {stop}; put back the whole file")
        return data

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.where(name)}: cannot be read: {error.strerror}; put it back") from None
