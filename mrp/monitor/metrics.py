"""The numbers of a run, one JSON line per log point in its folder, and the trackers that show them elsewhere."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.config import ConfigError, writing
from mrp.files import replacing
from mrp.monitor.bests import BESTS, Bests
from mrp.monitor.shown import HURRIED, LAST, Shown
from mrp.trackers import Section, parts

METRICS = "metrics.jsonl"
PICTURES = "pictures"  # a folder
INTERRUPTED = "interrupted"  # marks a line whose evaluation was not finished, and is repeated on resume
_REMEDY = "mend it and run the same command again"
_AT_ONCE = 2**16  # bytes that are read at once from the end


class Metrics:
    """Writes one line per log point; on resume the lines after the checkpoint's step are cut, so none appears twice.

    The file has to be complete, so a failure to write it ends the run. Trackers only repeat its numbers elsewhere. A
    step whose evaluation was interrupted they get once that is made up for: some of them take a step only once.
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
        with writing(self.path, _REMEDY):
            cut(self.path, resumed_at)
            self._held = _interrupted(self.path)
            self._bests = Bests(folder / BESTS, each_line(self.path))
            self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Records the values of a step; JSON has no NaN, so a value that is not finite becomes text."""
        line = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        with writing(self.path, _REMEDY):
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        self._bests.add(step, values)
        if INTERRUPTED in values:
            return
        held, self._held = self._held, {}
        for tracker in self._trackers:
            tracker.log(step, held | values)

    def flush(self) -> None:
        """Waits until all lines are on the disk, so that a loss of power leaves none out before a checkpoint."""
        with writing(self.path, _REMEDY):
            os.fsync(self._file.fileno())

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
        with writing(self.path, _REMEDY):
            self._file.close()

    def _end_trackers(self, seconds: float, summary: dict[str, float] | None = None) -> None:
        until = time.monotonic() + seconds
        for tracker in self._trackers:
            tracker.end(summary or {})
        for tracker in self._trackers:
            tracker.wait(until)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics file, if there is one, without a line that was torn by a kill."""
    return [{sys.intern(name): value for name, value in line.items()} for line in each_line(path)]


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the same lines one by one: a run of a million steps has more than should be in memory at once."""
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        for content in file:
            if (line := _sound(content)) is not None:
                yield line


def from_the_end(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the lines from the last one back, each with where in the file it ends; no more is read than is asked for.

    What a kill has torn is passed over.
    """
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        start = end = file.seek(0, os.SEEK_END)
        rest = b""
        while start:
            size = min(start, _AT_ONCE)
            start = file.seek(start - size)
            contents = (file.read(size) + rest).splitlines(keepends=True)
            rest = contents.pop(0) if start else b""  # it may have begun before
            for content in reversed(contents):
                if (line := _sound(content)) is not None:
                    yield end, line
                end -= len(content)


def last_lines(path: Path, most: int = 2**16) -> list[dict[str, Any]]:
    """Returns the lines that stand in the last bytes of a metrics file, however long it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            found = map(_sound, file.read(most).splitlines())
            return [line for line in found if line is not None]
    except OSError:  # it is not there yet, or cannot be read: other runs are listed beside this one
        return []


def _interrupted(path: Path) -> dict[str, float]:
    """Returns the numbers of the last step where its evaluation was interrupted, and so no tracker has got them."""
    numbers: dict[str, float] = {}
    for _, line in from_the_end(path):
        if INTERRUPTED not in line:
            break
        numbers = {name: float(value) for name, value in line.items() if name not in ("step", INTERRUPTED)} | numbers
    return numbers


def _sound(content: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(content.decode("utf-8", errors="replace"))
    except json.JSONDecodeError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None


def cut(path: Path, step: int) -> None:
    """Drops the lines after `step` and those torn by a kill: the file ends behind the last line up to that step."""
    if path.exists():
        end = next((end for end, line in from_the_end(path) if line["step"] <= step), 0)
        with path.open("r+b") as file:
            file.truncate(end)
            file.seek(max(0, end - 1))
            if file.read(1) not in (b"\n", b""):  # the kill came before its last byte
                file.write(b"\n")
