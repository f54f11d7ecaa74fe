"""A separate process that hashes and writes checkpoints from memory that it shares with the training process.

It knows neither torch nor a device, ignores Ctrl-C and SIGTERM, and finishes what it has begun even when the training
process is killed. This file imports nothing but the standard library, so that the process starts at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from mrp.checkpoint import sealed
from mrp.files import lock

_LOCK = ".writer"  # in the run's folder: held while a checkpoint is written
_START = "import sys; sys.path.insert(0, {root!r}); from mrp.checkpoint.writer import serve; serve({memory}, {parent})"


class WriteError(Exception):
    """A checkpoint could not be written; its text is the system's reason."""


class Report(NamedTuple):
    """A checkpoint that is on the disk."""

    step: int
    size: int  # bytes
    seconds: float


class Writer:
    """The training process's side: it offers memory to fill, and has one checkpoint at a time written from it."""

    def __init__(self, run: Path) -> None:
        self._run = run.absolute()
        self._file = _anonymous_file()
        self._size = 0
        self._map: mmap.mmap | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._step: int | None = None  # of the checkpoint that is being written

    @property
    def step(self) -> int | None:
        """Returns the step whose checkpoint is being written, if one is."""
        return self._step

    def memory(self, size: int) -> mmap.mmap:
        """Returns shared memory of at least this size, which is kept for the next checkpoint: its pages exist then."""
        assert self._step is None, "its content is being written"
        if self._map is None or size > self._size:
            os.ftruncate(self._file, size)
            self._map, self._size = mmap.mmap(self._file, size), size
        return self._map

    def start(self, step: int, files: Mapping[str, tuple[int, int]], keep: sealed.Keep) -> None:
        """Has the files (each one's start and size in the memory) written as the checkpoint of this step."""
        assert self._step is None, "one at a time"
        job = {"run": str(self._run), "step": step, "size": self._size, "files": files, "keep": keep}
        process = self._running()
        self._step = step
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise WriteError(self._why_it_ended()) from None

    def finished(self, wait: bool = False) -> Report | None:
        """Returns a report if the checkpoint is on the disk by now, and raises the error if writing it has failed."""
        if self._step is None:
            return None
        assert self._process is not None
        assert self._process.stdout is not None
        if not wait and not select.select([self._process.stdout], [], [], 0)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            raise WriteError(self._why_it_ended())
        step, self._step = self._step, None
        answer = json.loads(line)
        if "error" in answer:
            raise WriteError(answer["error"])
        return Report(step, answer["size"], answer["seconds"])

    def close(self) -> None:
        """Lets the process finish what it was given, and end."""
        process, self._process, self._step, self._map = self._process, None, None, None
        if process is not None:
            with process:  # closes the pipes and waits
                pass
        os.close(self._file)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            root = str(Path(sealed.__file__).parent.parent.parent)
            code = _START.format(root=root, memory=self._file, parent=os.getpid())
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=[self._file], start_new_session=True,
            )  # fmt: skip
        return self._process

    def _why_it_ended(self) -> str:
        """Returns why the writing process has ended."""
        process, self._process, self._step = self._process, None, None
        assert process is not None
        with contextlib.suppress(BrokenPipeError):
            _, errors = process.communicate()
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            return f"the process that writes was ended by {name} (checkpoint.asynchronous=false does without one)"
        lines = errors.decode(errors="replace").strip().splitlines()
        return f"the process that writes has ended: {lines[-1] if lines else f'exit code {process.returncode}'}"


def wait_for_others(run: Path, say: Callable[[str], None], limit: float = 600.0) -> None:
    """Waits until the writer of a killed training process has finished; raises a WriteError after the limit."""
    begin, said = time.monotonic(), False
    try:
        file = (run / _LOCK).open("rb")
    except FileNotFoundError:
        return  # nothing was ever written here
    with file:
        while True:
            try:
                lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited = time.monotonic() - begin
            if waited > limit:
                raise WriteError(f"the writer of an earlier process has not finished in {limit:.0f} s")
            if waited > 1 and not said:
                say(f"{run}: waiting until a checkpoint of an earlier process is written")
                said = True
            time.sleep(0.02)


def serve(memory: int, parent: int) -> None:
    """The writing process's side: carries out the orders on standard input, one per line, until none can come."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.nice(5)  # training goes first
    for line in _lines(sys.stdin.buffer, parent):
        job = json.loads(line)
        try:
            answer = _write(memory, job)
        except OSError as error:
            answer = {"error": error.strerror or str(error)}
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def _lines(orders: IO[bytes], parent: int) -> Iterator[bytes]:
    """Yields orders until the training process has ended: its workers may hold the pipe open for a while longer."""
    while True:
        orphaned = os.getppid() != parent  # an order that is still in the pipe is carried out
        if select.select([orders], [], [], 0.0 if orphaned else 1.0)[0]:
            line = orders.readline()
            if not line:
                return
            yield line
        elif orphaned:
            return


def _write(memory: int, job: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    run, keep = Path(job["run"]), sealed.Keep(*job["keep"])
    content = memoryview(mmap.mmap(memory, job["size"]))
    files = {name: [content[start : start + size]] for name, (start, size) in job["files"].items()}
    run.mkdir(parents=True, exist_ok=True)
    with (run / _LOCK).open("ab") as file:
        lock(file, fcntl.LOCK_EX)
        size = sealed.write(run / "checkpoints", job["step"], files, keep)
    return {"size": size, "seconds": time.perf_counter() - begin}


def _anonymous_file() -> int:
    """Returns a file in memory that has no name, and lasts as long as a process holds it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mrp-checkpoint")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
