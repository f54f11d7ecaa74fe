"""Starts several processes on one machine and ends them together, for those who do not need torchrun."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from mrp import progress
from mrp.processes.container import usable_cores
from mrp.processes.signals import ALONE, LAUNCHER, heard

_GRACE = 10.0  # seconds between telling the other processes that one has died and ending them
_LAST_CHECKPOINT = 60.0  # seconds that the others have once one process has ended, where all were asked to end


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs this command line in several processes; the first failure ends all of them. Returns the exit code."""
    threads = max(1, usable_cores() // processes)
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(processes)}
    common |= {LAUNCHER: str(os.getpid())}  # a process whose parent is another one knows that we were killed
    common |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    if sys.platform == "darwin":  # else gloo goes by the machine's name, which the network of a laptop may not know
        common = {"GLOO_SOCKET_IFNAME": "lo0"} | common
    children: list[subprocess.Popen[bytes]] = []
    signals_received: list[int] = []

    def forward(number: int, _: object) -> None:
        signals_received.append(number)
        _send(children, number)

    with _reserved_port() as port:
        before = {number: signal.signal(number, forward) for number in heard()}
        try:
            for rank in range(processes):
                environment = common | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(subprocess.Popen([sys.executable, "-m", "mrp", *arguments], env=environment))
            for number in signals_received:  # while some were not started yet; the others take it for an echo
                _send(children, number)
            return _wait(children, signals_received)
        finally:
            _end_all(children)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """Yields a port that only the first process takes: the others meet there seconds later, once torch is imported.

    A socket holds it, so that the system gives it to nobody else; one that says that it reuses an address, as torch's
    does, may listen there all the same, since this one never does.
    """
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = held.getsockname()[1]
        if sys.platform != "linux":  # elsewhere the held socket may be the one that the others reach
            held.close()
        yield port


def _wait(children: list[subprocess.Popen[bytes]], signals_received: Sequence[int]) -> int:
    """Returns the first exit code that is not 0, or 0 once all have ended well.

    Where all were asked to end, the slower ones have time to save a checkpoint after the first one has ended.
    """
    deadline = float("inf")
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + (_LAST_CHECKPOINT if signals_received else 0.0)
        if failed and (None not in codes or time.monotonic() >= deadline):
            for rank, code in enumerate(codes):
                if code and code < 0:
                    name = signal.Signals(-code).name
                    progress.put(f"mrp: error: process {rank} was ended by {name}", sys.stderr)
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.05)


def _send(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end_all(children: list[subprocess.Popen[bytes]]) -> None:
    _send(children, ALONE)
    deadline = time.monotonic() + _GRACE
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        if child.poll() is None:
            child.kill()
            child.wait()
