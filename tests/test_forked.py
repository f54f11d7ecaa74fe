"""Processes that a test starts end with it, whatever it finds."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from tests import forked


def test_when_one_of_several_is_waited_for_in_vain_the_others_end_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forked, "LIMIT", 0.1)
    before = set(multiprocessing.active_children())
    with pytest.raises(AssertionError, match="waited in vain"):
        forked.together(2, time.sleep, 120)
    for left in set(multiprocessing.active_children()) - before:
        left.join(20)
        assert left.exitcode is not None
