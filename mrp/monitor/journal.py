"""Reports a run while it trains: numbers in the metrics file, progress and loss spikes on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mrp.monitor.metrics import METRICS, Metrics, from_the_end
from mrp.monitor.progress import Progress
from mrp.monitor.shown import HURRIED, LAST
from mrp.monitor.spikes import Spikes
from mrp.trackers import Section

T = TypeVar("T")


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
        self._progress = Progress(steps, start, batch, quiet=not main)
        self._spikes = Spikes(line for _, line in from_the_end(folder / METRICS)) if main else None

    def due(self, step: int) -> bool:
        """Returns whether numbers are logged after this step."""
        return step % self._every == 0

    def finished(self, step: int) -> None:
        """Notes that a step has ended."""
        self._progress.finished(step)

    def taken(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches of the steps, and counts how long each one is waited for."""
        return self._progress.taken(batches)

    def costs(self) -> dict[str, float]:
        """Returns what the steps since the last log point took, where the process that took most of it counts."""
        return {"loader/waiting": self._progress.waiting()}

    def rate(self, step: int) -> float:
        """Returns images per second."""
        return self._progress.rate(step)

    def log(self, step: int, values: dict[str, float], pictures: Mapping[str, Any] | None = None) -> None:
        """Records the numbers and pictures of a step, shows the progress and warns of a loss spike."""
        if "loss" in values and "images_per_second" in values:
            self._progress.show(step, values["loss"], values["images_per_second"])
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
        self._progress.close()
        if self._metrics is not None:
            self._metrics.close(HURRIED if self._asked() else LAST)
