"""One tracker on a thread of its own: whatever it does, training neither waits for it nor ends with it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrp.config import ConfigError
from mrp.trackers import TRACKERS, Section

_MOST = 2000  # calls that wait for a slow tracker; what comes on top of them is not shown
_MOST_PICTURES = 20  # among them
_START = 30.0  # seconds in which a tracker starts, or says what is wrong with its configuration
LAST = 180.0  # seconds that all trackers together have at the end of a run for what they still hold
HURRIED = 20.0  # in place of that where the run was told to end: a scheduler soon kills what is still there
_PATIENCE = 5.0  # seconds after which it is said that the end waits for it


class Shown:
    """Hands numbers and pictures to a tracker; one that fails is named once and switched off, and its gaps are counted.

    A wrong configuration raises ConfigError at the start, where the user is still there to mend it.
    """

    def __init__(
        self,
        section: Section,
        folder: Path,
        resolved: dict[str, Any],
        resumed_at: int,
        say: Callable[[str], object],
    ) -> None:
        self._name, self._say = section.name, say
        self._calls: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._started = threading.Event()
        self._refusal: ConfigError | None = None
        self._failed = self._closing = self._is_late = False
        self._all = self._lost = 0
        self._thread = threading.Thread(
            target=self._run, args=(section, folder, resolved, resumed_at), name=f"tracker {section.name}", daemon=True
        )
        self._thread.start()
        if not self._started.wait(_START):
            self._is_late = True
            say(f"track: {self._name} has not started after {_START:.0f} s; training goes on, and it gets all later")
        if self._refusal is not None:
            raise self._refusal

    def log(self, step: int, values: dict[str, float]) -> None:
        """Has the values of a step shown."""
        self._hand_over("log", step, values)

    def picture(self, step: int, name: str, array: Any) -> None:
        """Has a picture shown: rows, columns and three colours from 0 to 255."""
        self._hand_over("picture", step, name, array)

    def end(self, summary: dict[str, float]) -> None:
        """Gives the tracker the best values, after which nothing comes."""
        if summary:
            self._hand_over("summary", summary)
        with self._changed:
            self._closing = True
            self._changed.notify()

    def wait(self, until: float) -> None:
        """Waits until this time (`time.monotonic`) for what the tracker still holds, and says what was not shown."""
        self._thread.join(min(_PATIENCE, max(0.0, until - time.monotonic())))
        left = until - time.monotonic()
        if self._thread.is_alive() and left > 0:
            clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
            self._say(f"track: {self._name} still holds numbers: the end of the run waits for it until {clock}")
            self._thread.join(left)
        with self._changed:
            self._lost += len(self._calls)
            self._calls.clear()
            late = ", and did not come to an end" if self._thread.is_alive() else ""
        if self._lost or late:
            self._say(f"track: {self._name} lacks {self._lost:,} of {self._all:,} log points and pictures{late}")

    def _hand_over(self, method: str, *arguments: Any) -> None:
        with self._changed:
            self._all += 1
            is_full = len(self._calls) >= _MOST or (
                method == "picture" and sum(name == method for name, _ in self._calls) >= _MOST_PICTURES
            )
            if self._failed or is_full:
                self._lost += 1
            else:
                self._calls.append((method, arguments))
                self._changed.notify()

    def _run(self, section: Section, folder: Path, resolved: dict[str, Any], resumed_at: int) -> None:
        try:
            tracker = TRACKERS.find(self._name).Tracker(section, folder, resolved, resumed_at)
            self._started.set()
            while (call := self._next()) is not None:
                method, arguments = call
                if method == "log" or hasattr(tracker, method):  # not every tracker shows pictures or a summary
                    getattr(tracker, method)(*arguments)
            tracker.close()
        except Exception as error:  # whatever a tracker does: its network, its disk, its own faults
            if isinstance(error, ConfigError) and not (self._started.is_set() or self._is_late):
                self._refusal = error
            else:
                self._switch_off(error)
        finally:
            self._started.set()

    def _next(self) -> tuple[str, tuple[Any, ...]] | None:
        """Waits for the next call; returns None where there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closing)
            return self._calls.popleft() if self._calls else None

    def _switch_off(self, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        with self._changed:
            self._failed = True
            self._lost += len(self._calls) + self._started.is_set()  # the call that failed too
            self._calls.clear()
        self._say(f"warning: track: {self._name} fails and is switched off: {reason}; all is in metrics.jsonl")
