"""While one process trains heads, the others wait for it, and their watch hears of it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mrp.evaluate import contract
from mrp.evaluate.contract import Setting
from mrp.processes.signals import Interrupted
from tests.waiting import LONG


def test_who_waits_says_so_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One beat alone would let `machine.give_up` end all that wait for heads of an hour."""
    monkeypatch.setattr(contract, "_BEAT", 0.01)
    beats, enough = [0], threading.Event()

    def beat() -> None:
        beats[0] += 1
        if beats[0] == 3:
            enough.set()
        raise Interrupted  # as where this process was asked to end: the others hear of it in `pause`

    def pause() -> None:
        assert enough.wait(LONG)

    setting = cast(Any, SimpleNamespace(beat=beat))
    assert Setting.alone(setting, None, lambda table: 1 / 0, pause) is None
