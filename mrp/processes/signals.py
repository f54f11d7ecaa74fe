"""Requests to end a run: by a signal, by a file named STOP, or because the launcher or the terminal has gone.

A thread waits for them, since the main thread may be busy in a kernel or a collective. It notes the first request,
which the loop obeys at the end of a step, on all processes at once. A second request ends the process immediately.
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
from typing import Any, NoReturn

from mrp import ending, progress
from mrp.processes import faults

STOP = "STOP"
LAUNCHER = "MRP_LAUNCHER"  # the number of the process of `mrp --processes` that started this one
LAUNCHER_GONE = "the end of the launcher"
_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
ALONE = signal.SIGUSR2  # what our launcher sends where another process has died, without which none can go on
_INTERVAL = 0.5  # seconds between two checks for the file and for the launcher
_ECHO = 1.0  # seconds: a signal that follows so soon is the same request, sent to the launcher and to this process
_ORPHAN = 60.0  # seconds that a process without its launcher has for its checkpoint, once it makes steps


class Interrupted(Exception):
    """All processes have agreed to end during work that need not be finished, such as an evaluation."""


class Signals:
    """Waits for requests inside its block; `asked` says what the first one was."""

    def __init__(self, folder: Path | None, say: Callable[[str], None]) -> None:
        self.asked: str | None = None
        self.training = False  # whether steps are made, which a checkpoint may have to save
        self._stop = folder / STOP if folder else None
        self._file = f"{ending.BY_FILE} {self._stop}"
        self._say = say
        self._began, self._obeyed = 0.0, False
        self._before: dict[signal.Signals, Any] = {}  # the handlers of the signals that are heard here
        self._parent = int(os.environ.get(LAUNCHER, "0"))
        self._main = threading.current_thread() is threading.main_thread()  # Python allows signal handlers there alone
        self._reader, self._writer = os.pipe()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)

    def __enter__(self) -> Signals:
        if self._main:
            os.set_blocking(self._writer, False)
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            numbers = [*heard(), *([ALONE] if self._parent else [])]
            self._before |= {number: signal.signal(number, _only_into_the_pipe) for number in numbers}
        self._thread.start()
        if self._stop is not None:
            threading.Thread(target=self._look, args=(self._stop,), name="stop file", daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        progress.drop_closed_outputs()
        self._closed.set()
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
        """Returns whether the request was the file; only the first process looks for it."""
        return self._stop is not None and self.asked == self._file

    def obeyed(self) -> None:
        """Notes that the run is saved, and removes the file (in the first process), which would end the next start too.

        From now on a second signal of a launcher or a scheduler is ignored, and only one from a terminal is obeyed.
        """
        self._obeyed = True
        if self._stop is not None:
            self._stop.unlink(missing_ok=True)

    def _listen(self) -> None:
        """Reads signals from a pipe: Python's handlers would wait until the main thread has time for them."""
        while True:
            ready, _, _ = select.select([self._reader], [], [], _INTERVAL)
            for number in os.read(self._reader, 64) if ready else b"":
                if number == 0:
                    return
                if number in self._before:  # the pipe gets every signal that has some handler in Python
                    self._receive(signal.Signals(number))
            progress.drop_closed_outputs()
            if self._parent and os.getppid() != self._parent:
                if not self.training:
                    self._end_at_once(signal.SIGTERM, f"{LAUNCHER_GONE}, before the first step")
                self._note(LAUNCHER_GONE)
                if time.monotonic() - self._began > _ORPHAN:
                    self._end_at_once(signal.SIGTERM, f"ended {_ORPHAN:.0f} s after {LAUNCHER_GONE}")

    def _look(self, stop: Path) -> None:
        """Looks for the file, in a thread of its own: where the disk hangs, signals are still heard."""
        while not self._closed.wait(_INTERVAL):
            # Unlike Path.exists, this is False where a disk answers with an error: the next look may see it.
            if self.asked is None and os.path.exists(stop):
                self._note(self._file)

    def _receive(self, number: signal.Signals) -> None:
        if number == ALONE:
            if not self._obeyed and self.asked is None:
                self._end_at_once(number, "another process of this run has died", ending.FAILED)
            elif not self._obeyed:
                self._end_at_once(number, f"{self.asked}, then another process died")
        elif self.asked is None:
            self._note(number.name)
        elif number == signal.SIGHUP:
            pass  # nobody insists: a shell and the system both tell of a terminal that is closed, perhaps seconds apart
        elif time.monotonic() - self._began > _ECHO and (not self._obeyed or number == signal.SIGINT):
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            self._end_at_once(number, f"{self.asked}, then {number.name}: ended at once")

    def _end_at_once(self, number: signal.Signals, why: str, how: str | None = None) -> NoReturn:
        if self._stop is not None and not self._obeyed:
            state, folder = how or ending.kind_of_request(self.asked), self._stop.parent

            def note() -> None:
                fault = faults.told(folder) if number == ALONE else None
                ending.note(folder, state, f"{why}, without a checkpoint{f': {fault}' if fault else ''}")

            ending.within_seconds(note)
        os._exit(128 + number)  # a half-written checkpoint does not have its final name yet

    def _note(self, asked: str) -> None:
        if self.asked is None:
            self._began = time.monotonic()
            self.asked = asked
            self._say(f"{asked}: ends at the next step, with a checkpoint; a second signal ends at once")


def heard() -> list[signal.Signals]:
    """Returns the signals that ask a run to end: all but SIGHUP where `nohup` has made this process outlive it."""
    return [one for one in _NUMBERS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]


def _only_into_the_pipe(number: int, frame: object) -> None:
    """Does nothing; with it installed, Python writes the signal's number into the pipe."""
