"""Processes that a test starts end with it, whatever it finds."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tests import forked
from tests.waiting import LONG, ended, until


def test_when_one_of_several_is_waited_for_in_vain_the_others_end_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forked, "LIMIT", 0.1)
    before = set(multiprocessing.active_children())
    with pytest.raises(AssertionError, match="waited in vain"):
        forked.together(2, time.sleep, 120)
    for left in set(multiprocessing.active_children()) - before:
        left.join(LONG)
        assert left.exitcode is not None


def test_a_server_that_forks_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = [*os.pipe(), *os.pipe()]
    monkeypatch.setattr(forked, "LONG", 0.1)
    monkeypatch.setattr(forked.SERVER, "connect_to_new_process", lambda _: (pipes[0], pipes[3]))
    with pytest.raises(AssertionError, match="waited in vain"):
        forked.Started(time.sleep, 0)
    os.close(pipes[1])
    os.close(pipes[2])


def test_what_has_lost_its_pytest_ends_too(tmp_path: Path) -> None:
    forked.Started(_end_and_leave_one, tmp_path / "left").end()
    until(lambda: ended(int((tmp_path / "left").read_text())))


def _end_and_leave_one(note: Path) -> None:
    forked.SERVER.set_forkserver_preload([])  # it sleeps, and needs nothing
    started = forked.Started(time.sleep, 600)
    note.write_text(str(started.process.pid))
    os._exit(0)
