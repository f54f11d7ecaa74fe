"""Being asked to end: by a signal, by a file named STOP, or because the launcher is gone.

A thread listens, since the main one may be deep in a kernel or in a collective: it notes the first request, which the
loop obeys at the next boundary that all processes share, and obeys a second one itself, at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

STOP = "STOP"
LAUNCHER = "MRP_LAUNCHER"  # the process that started this rank and outlives it, where `mrp --processes` did
_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_LOOK = 0.5  # seconds between two looks for the file and for the launcher
_ECHO = 1.0  # seconds in which a second signal is the first again: a terminal or a scheduler tells the launcher and us
_ORPHAN = 60.0  # seconds that a rank without a launcher has for its checkpoint


class Interrupted(Exception):
    """All processes have agreed to end, in the midst of something that need not be finished."""


class Signals:
    """Listens from the moment it is entered; what it heard first stands in `asked`."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        self.asked: str | None = None
        self._stop = folder / STOP if folder else None
        self._file = f"the file {self._stop}"
        self._say = say
        self._began, self._obeyed = 0.0, False
        self._parent = int(os.environ.get(LAUNCHER, "0"))
        self._main = threading.current_thread() is threading.main_thread()  # elsewhere Python lets nobody listen
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def __enter__(self) -> Signals:
        if self._main:
            os.set_blocking(self._writer, False)
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, _nothing) for number in _NUMBERS}
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._main:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    @property
    def by_file(self) -> bool:
        """Whether it was the file that asked; only the first process looks for it."""
        return self._stop is not None and self.asked == self._file

    def obeyed(self) -> None:
        """It has been saved: take the file away (in the first process), or it would end the next start too.

        From here on a launcher or a scheduler that insists is not heard, only a person at a terminal.
        """
        self._obeyed = True
        if self._stop is not None:
            self._stop.unlink(missing_ok=True)

    def _listen(self) -> None:
        """Python's own handler runs in the main thread, when that has time; the system's writes into the pipe."""
        while True:
            ready, _, _ = select.select([self._reader], [], [], _LOOK)
            for number in os.read(self._reader, 64) if ready else b"":
                if number == 0:
                    return
                if number in _NUMBERS:
                    self._hear(signal.Signals(number))
            if self._stop is not None and self.asked is None and self._stop.exists():
                self._note(self._file)
            if self._parent and os.getppid() != self._parent:
                self._note("the end of the launcher")
                if time.monotonic() - self._began > _ORPHAN:
                    os._exit(128 + signal.SIGTERM)

    def _hear(self, number: signal.Signals) -> None:
        if self.asked is None:
            self._note(number.name)
        elif time.monotonic() - self._began > _ECHO and (not self._obeyed or number == signal.SIGINT):
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(128 + number)  # what is half written has no name yet, so nobody takes it for whole

    def _note(self, asked: str) -> None:
        if self.asked is None:
            self._began = time.monotonic()
            self.asked = asked
            self._say(f"{asked}: ends at the next step, with a checkpoint; a second signal ends at once")


def _nothing(number: int, frame: object) -> None:
    """Installed so that the signal is written into the pipe and does nothing else."""
