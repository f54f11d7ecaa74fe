"""The numbers of a run, one JSON line per log point in its folder, and the trackers that show them elsewhere."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mrp.config import ConfigError
from mrp.files import replacing, write_atomically
from mrp.monitor.bests import BESTS, Bests
from mrp.monitor.shown import HURRIED, LAST, Shown
from mrp.trackers import Section, parts

METRICS = "metrics.jsonl"
PICTURES = "pictures"  # a folder
INTERRUPTED = "interrupted"  # marks a line whose evaluation was not finished, and is repeated on resume


class Metrics:
    """Writes one line per log point; on resume the lines after the checkpoint's step are cut, so none appears twice.

    The file has to be complete, so a failure to write it ends the run. Trackers only repeat its numbers elsewhere.
    """

    def __init__(
        self,
        track: Section,
        folder: Path,
        resolved: dict[str, Any],
        resumed_at: int,
        say: Callable[[str], object] = print,
    ) -> None:
        self.path = folder / METRICS
        self._trackers: list[Shown] = []
        try:
            for part in parts(track):
                self._trackers.append(Shown(part, folder, resolved, resumed_at, say))
        except ConfigError:  # of one of them: the others have begun a run that they would show as crashed
            self._end_trackers(HURRIED)
            raise
        with _writing(self.path):
            cut(self.path, resumed_at)
            self._bests = Bests(folder / BESTS, read_lines(self.path))
            self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Records the values of a step; JSON has no NaN, so a value that is not finite becomes text."""
        line = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with _writing(self.path):
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        self._bests.add(step, values)
        for tracker in self._trackers:
            tracker.log(step, dict(values))

    def picture(self, step: int, name: str, array: Any) -> None:
        """Keeps a picture in the run's folder, where the disk allows it, and hands it to the trackers."""
        from PIL import Image

        path = self.path.parent / PICTURES / f"{name.replace('/', '-')}-{step:08d}.png"
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as file:
                Image.fromarray(array).save(file, format="PNG")
        for tracker in self._trackers:
            tracker.picture(step, name, array)

    def close(self, seconds: float = LAST) -> None:
        """Writes what is still held; all trackers together have so long for it."""
        self._end_trackers(seconds, self._bests.values())
        with _writing(self.path):
            self._file.close()

    def _end_trackers(self, seconds: float, summary: dict[str, float] | None = None) -> None:
        until = time.monotonic() + seconds
        for tracker in self._trackers:
            tracker.end(summary or {})
        for tracker in self._trackers:
            tracker.wait(until)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics file, if there is one, without a line that was torn by a kill."""
    return _sound(path.read_text(encoding="utf-8", errors="replace") if path.exists() else "")


def last_lines(path: Path, most: int = 2**16) -> list[dict[str, Any]]:
    """Returns the lines that stand in the last bytes of a metrics file, however long it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return _sound(file.read(most).decode("utf-8", errors="replace"))
    except OSError:  # it is not there yet, or cannot be read: other runs are listed beside this one
        return []


def _sound(content: str) -> list[dict[str, Any]]:
    lines = []
    for text in content.splitlines():
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            lines.append(values)
    return lines


def cut(path: Path, step: int) -> None:
    """Drops the lines after `step`, and those torn by a kill, in one atomic replacement."""
    if path.exists():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(kept))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror or error}; mend it and run the same command again"
        ) from None
