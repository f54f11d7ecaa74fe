"""Waiting for an event, and never for a time: how long something takes depends on what else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LONG = 300.0  # seconds, far beyond what a busy machine needs: only what never comes takes so long


def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ended(number: int) -> bool:
    """Returns whether a process has ended, also where nobody has asked how: a container's first process may not."""
    try:
        return not Path(f"/proc/{number}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True
