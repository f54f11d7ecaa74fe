"""What these tests of signals need, also where `nohup` has started pytest."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def hears_hangups() -> Iterator[None]:
    """Has this process, and those that it starts, hear that a terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
