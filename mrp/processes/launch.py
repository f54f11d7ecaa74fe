"""Several processes on one machine, for those who do not need torchrun: started together, ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from mrp.processes.signals import LAUNCHER

_GRACE = 10.0  # seconds between asking the other processes to end and ending them
_AGAIN = 1.5  # seconds after which it is asked again: at the second time it ends at once, for it cannot go on alone
_PARTING = 60.0  # seconds between the end of one process and that of the others, where all were asked to end
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run this command line in N ranks; the first failure ends all, and its exit code is ours."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {LAUNCHER: str(os.getpid())}  # a rank whose parent is another one knows that we were killed
    common |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    children: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def forward(number: int, _: object) -> None:
        told.append(number)
        _tell(children, number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        for rank in range(processes):
            environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(subprocess.Popen([sys.executable, "-m", "mrp", *arguments], env=environment))
        return _wait(children, told)
    finally:
        _end(children)
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen[bytes]], told: Sequence[int]) -> int:
    """The first code that is not 0; who was asked to end gets time to, and is not ended because another was faster."""
    deadline = float("inf")
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + (_PARTING if told else 0.0)
        if failed and (None not in codes or time.monotonic() >= deadline):
            for rank, code in enumerate(codes):
                if code and code < 0:
                    name = signal.Signals(-code).name
                    print(f"mrp: error: process {rank} was ended by {name}", file=sys.stderr, flush=True)
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.05)


def _tell(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    _tell(children, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    for child in children:
        while child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_AGAIN)
            _tell([child], signal.SIGTERM)
        if child.poll() is None:
            child.kill()
            child.wait()
