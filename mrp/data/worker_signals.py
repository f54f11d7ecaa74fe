"""Signals that the loader's workers ignore; the fork server that starts them imports this module first.

A scheduler tells every process of a job to end, and a terminal every process in front of it; the training process obeys
at the end of a step, for which it needs its workers.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import current_process, forkserver, parent_process, resource_tracker

from mrp.data.start import START

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def ignore_requests() -> None:
    """Ignores requests to end: the training process decides when this process ends."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)


@contextlib.contextmanager
def requests_blocked() -> Iterator[None]:
    """Has processes that start in this block inherit the requests as blocked, until they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server(preload: Sequence[str]) -> None:
    """Starts the fork server, if workers come from one and it does not run."""
    with requests_blocked():
        resource_tracker.ensure_running()  # it ignores SIGTERM and SIGINT, and has the others blocked from here
        signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)  # again: that has unblocked two of them
        if START == "forkserver":
            forkserver.set_forkserver_preload([__name__, *preload, "mrp.data.worker_memory"])
            forkserver.ensure_running()


def is_fork_server() -> bool:
    """Returns whether this is the server itself, not a process that it has forked, which has the same arguments."""
    inheriting = getattr(current_process(), "_inheriting", False)  # set while a forked process starts
    return "multiprocessing.forkserver" in " ".join(sys.orig_argv) and parent_process() is None and not inheriting


if is_fork_server():
    ignore_requests()
