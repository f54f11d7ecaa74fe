"""What asks a run to end is heard once, whoever sends it; only a second request is obeyed at once."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mrp import ending
from mrp.processes import faults, signals
from mrp.processes.signals import LAUNCHER, STOP, Signals
from tests.waiting import until


@pytest.fixture(autouse=True)
def codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes, in place of exits."""
    found: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", found.append)
    monkeypatch.setattr(signals, "_INTERVAL", 0.02)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_first_is_noted_its_echo_is_not_and_a_second_ends(
    number: signal.Signals, codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    monkeypatch.setattr(signals, "_ECHO", math.inf)
    with Signals(None, said.append) as heard:
        assert heard.asked is None
        os.kill(os.getpid(), number)
        until(lambda: heard.asked)
        os.kill(os.getpid(), signal.SIGTERM)  # as by the launcher, which was told too
        time.sleep(0.1)
        assert heard.asked == number.name
        assert not codes
        monkeypatch.setattr(signals, "_ECHO", 0.0)
        os.kill(os.getpid(), signal.SIGHUP)  # a terminal that closes tells it more than once
        time.sleep(0.1)
        assert not codes
        again = signal.SIGTERM if number == signal.SIGHUP else number
        os.kill(os.getpid(), again)
        until(lambda: codes)
    assert codes[0] == 128 + again
    assert len(said) == 1
    assert said[0].startswith(f"{number.name}: ")
    assert signal.getsignal(number) is before


def test_a_signal_that_another_library_handles_is_left_to_it(codes: list[int]) -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: handled.append(number))
    try:
        with Signals(None, lambda _: None) as heard:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)
            assert heard.asked is None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert handled == [signal.SIGUSR2]
    assert not codes


def test_what_nohup_has_started_does_not_hear_that_the_terminal_is_closed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(None, lambda _: None) as heard:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert heard.asked is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_ends_it_once(tmp_path: Path, codes: list[int]) -> None:
    with Signals(tmp_path, lambda _: None) as heard:
        time.sleep(0.1)
        assert heard.asked is None
        (tmp_path / STOP).touch()
        until(lambda: heard.asked)
        assert heard.asked == f"the file {tmp_path / STOP}"
        heard.obeyed()
    assert not (tmp_path / STOP).exists()
    assert not codes


def test_while_the_disk_hangs_signals_are_heard_and_obeyed(
    tmp_path: Path, codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(signals.os.path, "exists", lambda _: not back.wait())
    monkeypatch.setattr(signals, "_ECHO", 0.0)
    monkeypatch.setattr(ending, "_LAST_WORDS", 0.01)
    monkeypatch.setattr(ending, "note", lambda *_: back.wait())
    with Signals(tmp_path, lambda _: None) as heard:
        try:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: heard.asked)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: codes)
        finally:
            back.set()
    assert codes == [128 + signal.SIGTERM]


def test_a_rank_that_is_left_alone_ends_in_order_and_then_at_once(
    codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    with Signals(None, lambda _: None) as heard:
        time.sleep(0.1)
        assert heard.asked is None
    monkeypatch.setenv(LAUNCHER, "1" if os.getppid() != 1 else "2")
    trains = Signals(None, lambda _: None)
    trains.training = True
    with trains as heard:
        until(lambda: heard.asked)
        assert heard.asked == "the end of the launcher"
        assert not codes
        monkeypatch.setattr(signals, "_ORPHAN", 0.0)
        until(lambda: codes)
    assert codes[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("asked", [False, True])
def test_a_rank_whose_launcher_tells_that_another_has_died_ends_at_once_and_says_so(
    asked: bool, tmp_path: Path, codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[str, str]] = []
    monkeypatch.setattr(signals.ending, "note", lambda folder, state, why: noted.append((state, why)))
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    with Signals(tmp_path, lambda _: None) as heard:
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: heard.asked)
        os.kill(os.getpid(), signal.SIGUSR2)
        until(lambda: codes)
    assert codes == [128 + signal.SIGUSR2]
    words = {
        False: ("failed", "another process of this run has died, without a checkpoint"),
        True: ("preempted", "SIGTERM, then another process died, without a checkpoint"),
    }
    assert noted == [words[asked]]


def test_a_rank_that_ends_because_another_has_died_passes_on_what_that_one_said(
    tmp_path: Path, codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(signals.ending, "note", lambda folder, state, why: noted.append(why))
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    (tmp_path / faults.FILE).write_text("data: shard-7.tar is damaged")
    with Signals(tmp_path, lambda _: None):
        os.kill(os.getpid(), signal.SIGUSR2)
        until(lambda: codes)
    assert noted == ["another process of this run has died, without a checkpoint: data: shard-7.tar is damaged"]


def test_a_rank_that_is_left_alone_before_its_first_step_ends_at_once(
    codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHER, "1" if os.getppid() != 1 else "2")
    with Signals(None, lambda _: None):
        until(lambda: codes)
    assert codes[0] == 128 + signal.SIGTERM


def test_after_it_was_obeyed_a_launcher_that_insists_is_not_heard(
    codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_ECHO", 0.0)
    with Signals(None, lambda _: None) as heard:
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: heard.asked)
        heard.obeyed()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert not codes
        os.kill(os.getpid(), signal.SIGINT)  # a person may still insist
        until(lambda: codes)
    assert codes[0] == 128 + signal.SIGINT
