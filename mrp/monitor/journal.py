"""Reports a run while it trains: numbers in the metrics file, progress and loss spikes on the terminal."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mrp.monitor.metrics import METRICS, Metrics, from_the_end
from mrp.monitor.progress import Progress
from mrp.monitor.shown import HURRIED, LAST
from mrp.trackers import Section

T = TypeVar("T")
_WINDOW = 100  # log points that the loss is compared with
_ENOUGH = 10  # without so many before it, nothing is unusual
_FAR = 8.0  # deviations above the median; a normal variable is that far from it once in 10^15 times
_FLOOR = 0.02  # the least deviation, as a share of the median: on a flat curve every ripple would be a spike


class Journal:
    """Every process has one; only that of the main process writes and prints."""

    def __init__(
        self,
        track: Section,
        folder: Path,
        resolved: dict[str, Any],
        *,
        start: int,
        steps: int,
        batch: int,
        main: bool,
        say: Callable[[str], object],
        asked: Callable[[], bool],
    ) -> None:
        self._every, self._say, self._asked = track.every, say, asked
        self._metrics = Metrics(track, folder, resolved, start, say) if main else None
        self.progress = Progress(steps, start, batch, quiet=not main)
        self._spikes = Spikes(line for _, line in from_the_end(folder / METRICS)) if main else None

    def due(self, step: int) -> bool:
        """Returns whether numbers are logged after this step."""
        return step % self._every == 0

    def costs(self) -> dict[str, float]:
        """Returns what the steps since the last log point took, where the process that took most of it counts."""
        return {"loader/waiting": self.progress.waiting()}

    def log(self, step: int, values: dict[str, float], pictures: Mapping[str, Any] | None = None) -> None:
        """Records the numbers and pictures of a step, shows the progress and warns of a loss spike."""
        if "loss" in values and "images_per_second" in values:
            self.progress.show(step, values["loss"], values["images_per_second"])
        if self._metrics is not None and self._spikes is not None:
            self._metrics.log(step, values | self._spikes.check(step, values, self._say))
            for name, array in (pictures or {}).items():
                self._metrics.picture(step, name, array)

    def flush(self) -> None:
        """Waits until the numbers are on the disk."""
        if self._metrics is not None:
            self._metrics.flush()

    def close(self) -> None:
        """Writes what is still held, in haste where the run was told to end, and leaves the terminal as it was."""
        self.progress.close()
        if self._metrics is not None:
            self._metrics.close(HURRIED if self._asked() else LAST)


class Spikes:
    """Compares each logged loss with the median of those before it, in units of their median deviation."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """`lines` are those of a resumed run, from the last one back; no more are taken than are needed."""
        losses = (float(line.get("loss", math.nan)) for line in lines)
        self._before = deque(reversed([*islice(filter(math.isfinite, losses), _WINDOW)]), _WINDOW)

    def check(self, step: int, values: Mapping[str, float], say: Callable[[str], object]) -> dict[str, float]:
        """Returns one more number for the metrics where the loss is a spike, and warns of it."""
        loss = values.get("loss", math.nan)
        above = self._deviations(loss)
        if above is None or above <= _FAR:
            return {}
        say(f"warning: the loss of step {step} is a spike: {loss:.4g}, {above:.0f} deviations above the usual")
        return {"spike": above}

    def _deviations(self, loss: float) -> float | None:
        if not math.isfinite(loss):
            return None
        above = None
        if len(self._before) >= _ENOUGH:
            median = statistics.median(self._before)
            deviation = 1.4826 * statistics.median(abs(value - median) for value in self._before)  # a normal's sigma
            above = (loss - median) / max(deviation, _FLOOR * abs(median), 1e-12)
        self._before.append(loss)
        return above
