"""Imported first by the fork server of the loader's workers: a signal that is sent to all processes spares them.

A scheduler tells every process of a job to end, and a terminal every process in front of it; the training process obeys
at the end of a step, for which it needs its workers.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from multiprocessing import current_process, forkserver, parent_process, resource_tracker

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def ignore_requests() -> None:
    """Let the training process decide when this one ends."""
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)


def start_fork_server(preload: Sequence[str]) -> None:
    """Start it, unless it runs, with the requests held back: it inherits that, until it has learned to ignore them."""
    forkserver.set_forkserver_preload([__name__, *preload])
    resource_tracker.ensure_running()  # it lets through what the caller holds back
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_fork_server() -> bool:
    """Whether this is the server itself, and not one of the processes that it has forked and that carry its words."""
    inheriting = getattr(current_process(), "_inheriting", False)  # set while a forked process makes itself ready
    return "multiprocessing.forkserver" in " ".join(sys.orig_argv) and parent_process() is None and not inheriting


if _is_fork_server():
    ignore_requests()
