"""What is said beside results: remarks, and on a terminal how far long work is."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

_hidden = 0  # how many blocks ask for silence now, such as a training run, which has a line of its own
_quiet = False  # whether results, warnings and errors are all that is wanted
_beat: Callable[[], object] | None = None  # is called for each item of long work
_shown: Any = None  # the display of the outermost bar; a terminal takes one at a time


def silence(quiet: bool) -> None:
    """Says from now on only warnings, or everything again."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """Prints a remark of the first process on standard error, where it is quiet a warning alone; `tell` is a run's."""
    if (not _quiet or text.startswith("warning")) and is_first():
        put(text, sys.stderr)


def duration(seconds: float) -> str:
    """Returns a time in its two largest units."""
    seconds = max(0, round(seconds))
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {unit}" + (f" {rest} {small}" if rest and seconds < 20 * size else "")
    return f"{seconds} s"


def tell(text: str) -> None:
    """Prints a line of a training's log on standard output; where it is quiet, warnings alone, on standard error."""
    if text.startswith("warning"):
        put(text, sys.stderr if _quiet else sys.stdout)
    elif not _quiet:
        put(text, sys.stdout)


def put(text: str, file: TextIO) -> None:
    """Prints a line; where that cannot be done, the work that the line tells of goes on without it."""
    try:
        try:
            print(text, file=file, flush=True)
        except UnicodeEncodeError:  # a name of a file or a class that this terminal cannot show
            encoding = file.encoding or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
    except OSError:
        drop_closed_outputs()


def drop_closed_outputs() -> bool:
    """Sends to nowhere what nobody can read any more: a terminal was closed, or the reader of a pipe has ended.

    Otherwise the next line that anything prints would raise an error there. Returns whether there was such an output.
    """
    outputs = select.poll()
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:  # else its number may be that of somebody's connection by now
            outputs.register(stream.fileno(), select.POLLOUT)  # macOS tells nothing where nothing is asked
    closed = [number for number, event in outputs.poll(0) if event & (select.POLLHUP | select.POLLERR)]
    if closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in closed:
            os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(closed)


def is_first() -> bool:
    """Returns whether this is the process that speaks for all of a job."""
    return os.environ.get("RANK", "0") == "0"


def on_terminal() -> bool:
    """Returns whether progress is drawn and not printed line by line."""
    return os.isatty(2) and not _quiet


@contextmanager
def hidden() -> Iterator[None]:
    """Shows nothing in this block."""
    global _hidden
    _hidden += 1
    try:
        yield
    finally:
        _hidden -= 1


@contextmanager
def beating(beat: Callable[[], object]) -> Iterator[None]:
    """Calls `beat` for each item of long work in this block; what it raises ends the work."""
    global _beat
    before, _beat = _beat, beat
    try:
        yield
    finally:
        _beat = before


def beat() -> None:
    """Does what `beating` has set, for long work that is not gone through item by item."""
    if _beat is not None:
        _beat()


def over(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, and shows how many there have been of all; `total` where the items do not know it."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    with Bar(what) as bar:
        bar(0, total)
        for done, item in enumerate(items, start=1):
            beat()
            yield item
            bar(done, total)


class Bar:
    """One line with what is done, how much of it, and the time left; inside another bar a line below it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._display: Any = None  # None where nothing is shown
        self._is_outermost = False
        self._task: Any = None

    def __call__(self, done: int, total: int | None) -> None:
        """Shows that so much is done."""
        if self._display is not None:
            if self._task is None:
                self._task = self._display.add_task(self._what)
            self._display.update(self._task, completed=done, total=total)

    def __enter__(self) -> Bar:
        global _shown
        if not _hidden and on_terminal() and is_first():
            self._is_outermost = _shown is None
            if self._is_outermost:
                _shown = _display()
                _shown.start()
            self._display = _shown
        return self

    def __exit__(self, *_: object) -> None:
        global _shown
        if self._display is not None and self._task is not None and not self._is_outermost:
            self._display.remove_task(self._task)
        if self._is_outermost:
            self._display.stop()
            _shown = None


def _display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))
