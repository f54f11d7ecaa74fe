"""What the person who watches a run is told."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mrp.monitor import progress
from mrp.monitor.progress import Progress


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_the_rate_counts_only_what_this_process_did(clock: Clock) -> None:
    shown = Progress(total=100, start=40, batch=8, quiet=True)
    clock.now += 30  # compiles
    shown.finished(41)
    clock.now += 2
    assert shown.rate(51) == 10 * 8 / 2


def test_waiting_is_the_share_of_the_steps_without_evaluations(clock: Clock) -> None:
    shown = Progress(total=100, start=0, batch=8, quiet=True)

    def loader() -> Iterator[int]:
        for number in range(4):
            clock.now += 1  # decodes
            yield number

    shares = []
    for number in shown.taken(loader()):
        clock.now += 3  # computes
        if number % 2:
            shares.append(shown.waiting())
            clock.now += 100  # evaluates and saves
    assert shares == [0.25, 0.25]
    assert shown.waiting() == 0


def test_the_rate_is_that_of_the_last_log_points(clock: Clock) -> None:
    shown = Progress(total=1000, start=0, batch=1, quiet=True)
    shown.finished(1)
    for step in range(2, 60):
        clock.now += 1
        assert shown.rate(step) == 1
    for step in range(60, 100):
        clock.now += 0.1
        rate = shown.rate(step)
    assert rate == pytest.approx(10)


def test_the_rate_is_that_of_the_steps_and_the_time_left_holds_evaluations(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(total=40, start=0, batch=8, quiet=False)
    for step in shown.taken(range(1, 22)):
        clock.now += 2
        shown.finished(step)
        if step % 5 == 0:
            shown.waiting()
            rate = shown.rate(step)
            assert rate == pytest.approx(4)
            shown.show(step, 0.5, rate)
            clock.now += 90  # evaluates
    assert capsys.readouterr().out.splitlines()[-1] == "step 20/40  4 images/s  loss 0.5000  5 min 24 s left"


def test_a_slow_first_step_is_told_of(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=100, start=0, batch=8, quiet=False)
    clock.now += 42
    shown.finished(1)
    clock.now += 42
    shown.finished(2)
    assert capsys.readouterr().out == "first step after 42 s\n"


def test_a_log_gets_a_line_every_ten_seconds_and_the_last(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=3610, start=0, batch=4, quiet=False)
    for step in range(1, 26):
        clock.now += 1
        shown.show(step, loss=0.5, rate=4.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 11/3610  4 images/s  loss 0.5000  59 min left",
        "step 22/3610  4 images/s  loss 0.5000  59 min left",
    ]
    shown.show(3610, loss=float("nan"), rate=4.0)
    assert capsys.readouterr().out.endswith("loss nan  0 s left\n")
    shown.close()


def test_a_quiet_one_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=2, start=0, batch=4, quiet=True)
    clock.now += 60
    shown.show(2, loss=0.5, rate=4.0)
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_line_that_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    shown = Progress(total=1000, start=4, batch=8, quiet=False)
    shown.show(7, loss=0.25, rate=4.0)
    shown.close()
    output = capsys.readouterr()
    assert output.out == ""
    assert "7/1000 steps" in output.err
    assert "4 images/s  loss 0.2500  33 min left" in output.err, "after one log point, however long it took"
    assert output.err.count("\x1b[?25l") == output.err.count("\x1b[?25h") == 1, "the cursor is hidden, and shown again"
