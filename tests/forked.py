"""`mrp` in processes of their own that start at once: each is forked from a server that has imported all of it.

A new interpreter works for six seconds to import torch, timm and their friends. What such a start adds to that is tried
where a user starts it: `test_one_process_as_a_user_starts_it`, `test_two_processes_train_as_one`.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrp.cli import main
from mrp.data.worker_signals import REQUESTS
from mrp.processes import launch as launcher
from mrp.processes.signals import heard
from tests.waiting import LONG

# A server of its own, which runs no threads: the loader's ignores signals, and has imported less.
SERVER = forkserver.ForkServer()
SERVER.set_forkserver_preload(
    ["mrp.train", "mrp.api", "mrp.check.processes", "sklearn.datasets", "tests.preloaded", "mrp.data.worker_memory"]
)
ROOT = str(Path(__file__).parents[1])

LIMIT = 800.0  # seconds; pytest itself ends a test after 900


class Started:
    """A function in a process of its own, whose output goes to files."""

    def __init__(
        self,
        target: Callable[..., object],
        *words: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="mrp-forked-")
        self._out, self._err = (Path(self._place.name, name) for name in ("out", "err"))
        self._err.touch()  # it is read where the process has not even begun
        given = (self._out, self._err, cwd or Path.cwd(), dict(os.environ | (env or {})), target, words)
        self.process: BaseProcess = multiprocessing.get_context("forkserver").Process(target=_work, args=given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forkserver, "connect_to_new_process", _connect)
            patch.setenv("PYTHONPATH", ROOT, prepend=os.pathsep)  # for the server, where it starts now
            try:
                self.process.start()
            except BaseException:
                self._place.cleanup()
                raise

    def end(self) -> subprocess.CompletedProcess[str]:
        """Waits for its end, and returns its exit code and what it has printed."""
        try:
            self.process.join(LIMIT)
            assert self.process.exitcode is not None, f"waited in vain: {self._err.read_text()}"
            code = self.process.exitcode
            return subprocess.CompletedProcess((), code, self._out.read_text(), self._err.read_text())
        finally:
            self.process.terminate()
            self.process.join(5)  # a launcher ends its processes
            self.stop()

    def stop(self) -> None:
        """Ends it at once, and removes its files."""
        self.process.kill()
        self.process.join()
        self._place.cleanup()

    def kill_when(self, condition: Callable[[], bool], later: float = 0.0) -> None:
        """Kills it so many seconds after something holds, which has to be before it ends by itself."""
        deadline = time.monotonic() + LONG
        try:
            while self.process.is_alive() and not condition():
                assert time.monotonic() < deadline, "waited in vain"
                time.sleep(0.001)
            time.sleep(later)
            assert self.process.is_alive(), f"it ended before it could be killed: {self._err.read_text()}"
        finally:
            self.stop()


def mrp(words: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command line of mrp, also one with `--processes`, and prints here what it prints."""
    done = Started(main, words, cwd=cwd).end()
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done


def launch(processes: int, words: Sequence[str]) -> int:
    """Runs a command line of mrp in so many processes, and returns the exit code of their launcher."""
    return mrp([*words, "--processes", str(processes)]).returncode


def together(
    world: int, target: Callable[..., object], *words: object, cwd: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Calls a function in as many processes, which know of each other as those do that `torchrun` starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    started = list[Started]()
    try:
        for rank in range(world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(Started(target, *words, cwd=cwd, env=common | own))
        return [each.end() for each in started]
    finally:
        for each in started:  # one that waits for another that has failed would keep pytest from its end
            each.stop()


def _connect(descriptors: Sequence[int]) -> tuple[int, int]:
    """Has the server fork a process, which has to answer in time: `start` would wait for it without end."""
    answer, orders = SERVER.connect_to_new_process(descriptors)
    if not select.select([answer], [], [], LONG)[0]:
        os.close(answer)
        os.close(orders)
        raise AssertionError("waited in vain for the fork server")
    return answer, orders


def _end_with_pytest() -> None:
    """Ends this process where pytest has ended without it, as it does by its own limit of time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(out: Path, err: Path, cwd: Path, env: dict[str, str], target: Callable[..., object], words: Any) -> None:
    threading.Thread(target=_end_with_pytest, daemon=True).start()
    _hear_signals(REQUESTS)  # which the server ignores, as the loader's does
    os.chdir(cwd)
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    launcher.subprocess = SimpleNamespace(Popen=_Rank, TimeoutExpired=subprocess.TimeoutExpired)  # type: ignore
    _become(env)
    target(*words)


class _Rank:
    """To the launcher what `subprocess.Popen` is, but forked from it."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        assert command[:3] == [sys.executable, "-m", "mrp"]
        self._process = multiprocessing.get_context("fork").Process(target=_rank, args=(command[3:], env))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("mrp", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid or 0, number)

    def kill(self) -> None:
        self._process.kill()


def _rank(words: list[str], env: dict[str, str]) -> None:
    _hear_signals(heard())
    _become(env)
    main(words)


def _hear_signals(numbers: Sequence[int]) -> None:
    """Gives a process the answers to signals that Python gives to a new one."""
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _become(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)
