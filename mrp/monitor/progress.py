"""Where a run stands, for the person who watches it."""

from __future__ import annotations

import os
import time
from typing import Any


class Progress:
    """One line that moves on a terminal; elsewhere, a plain line every few seconds."""

    def __init__(self, total: int, start: int, batch: int, quiet: bool) -> None:
        self._total, self._start, self._batch, self._quiet = total, start, batch, quiet
        self._began = self._shown = time.monotonic()
        self._bar: Any = None
        if not quiet and os.isatty(2):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = ("{task.completed}/{task.total} steps", BarColumn(), "{task.fields[text]}", TimeRemainingColumn())
            bars = [TextColumn(column) if isinstance(column, str) else column for column in columns]
            self._bar = Progress(*bars, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=start, text="")

    def rate(self, step: int) -> float:
        """Images a second since the start."""
        return (step - self._start) * self._batch / max(time.monotonic() - self._began, 1e-9)

    def show(self, step: int, loss: float) -> None:
        """Say where the run stands."""
        text = f"{self.rate(step):.0f} images/s  loss {loss:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif not self._quiet and (time.monotonic() - self._shown > 10 or step == self._total):
            self._shown = time.monotonic()
            left = (self._total - step) * self._batch / max(self.rate(step), 1e-9)
            print(f"step {step}/{self._total}  {text}  {_duration(left)} left", flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
