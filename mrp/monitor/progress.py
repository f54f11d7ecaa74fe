"""Shows how fast a run is and how long it will still take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mrp import progress

T = TypeVar("T")

_WINDOW = 20  # log points that the rate is measured over
_SLOW_START = 10.0  # seconds; a first step that takes longer is reported
_EVERY = 10.0  # seconds between two lines where there is no terminal


class Progress:
    """Updates one line on a terminal; elsewhere prints a plain line every few seconds."""

    def __init__(self, total: int, start: int, batch: int, quiet: bool) -> None:
        self._total, self._batch, self._quiet = total, batch, quiet
        self._began = self._shown = time.monotonic()
        # Steps, when they ended, and how long evaluating and saving after log points had taken by then. The first step
        # is left out of the rate: it holds compilation and the loader's start.
        self._points: deque[tuple[int, float, float]] = deque(maxlen=_WINDOW)
        self._waited = self._apart = 0.0
        self._counted_from: float | None = None  # None after a log point: evaluating and saving is no part of the steps
        self._logged: float | None = None  # when that was
        self._whole_rate: float | None = None  # with evaluating and saving, by which the time left goes
        self._bar: Any = None
        if not quiet and progress.on_terminal():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = TextColumn("{task.completed}/{task.total} steps"), BarColumn(), TextColumn("{task.fields[text]}")
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=start, text="")

    def finished(self, step: int) -> None:
        """Notes when the first step has ended; later calls do nothing."""
        if not self._points:
            now = time.monotonic()
            self._points.append((step, now, self._apart))
            if now - self._began > _SLOW_START and not self._quiet:
                progress.tell(f"first step after {now - self._began:.0f} s")

    def taken(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches, and counts how long each one is waited for."""
        source = iter(batches)
        while True:
            asked = time.monotonic()
            if self._counted_from is None:
                self._counted_from = asked
                self._apart += 0.0 if self._logged is None else asked - self._logged
            try:
                batch = next(source)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            yield batch

    def waiting(self) -> float:
        """Returns the share of the steps' time since the last call in which the loader was waited for."""
        passed = 0.0 if self._counted_from is None else time.monotonic() - self._counted_from
        share = self._waited / max(passed, 1e-9)
        self._waited, self._counted_from, self._logged = 0.0, None, time.monotonic()
        return share

    def rate(self, step: int) -> float:
        """Returns images per second over the last log points; after the first step alone, since the start.

        What was evaluated and saved after a log point is no part of the time.
        """
        now = time.monotonic()
        first, at, apart = self._points[0] if self._points else (step, now, self._apart)
        if step == first:
            return self._batch / max(now - self._began, 1e-9)
        images = (step - first) * self._batch
        self._whole_rate = images / max(now - at, 1e-9)
        self._points.append((step, now, self._apart))
        return images / max(now - at - (self._apart - apart), 1e-9)

    def show(self, step: int, loss: float, rate: float) -> None:
        """Shows the step, the rate, the loss and the time left, which rich itself knows of half a minute at most."""
        left = progress.duration((self._total - step) * self._batch / max(self._whole_rate or rate, 1e-9))
        text = f"{rate:.0f} images/s  loss {loss:.4f}  {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif not self._quiet and (time.monotonic() - self._shown > _EVERY or step == self._total):
            self._shown = time.monotonic()
            progress.tell(f"step {step}/{self._total}  {text}")

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            progress.drop_closed_outputs()  # it prints a last time
            self._bar.stop()
