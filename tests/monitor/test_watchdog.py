"""Who stands still is named with what it is in and who waits for it, and everybody's stacks are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mrp.folder import IDENTITY
from mrp.monitor import watchdog
from mrp.monitor.watchdog import RANKS, STALLED, STALLS, Sign, Watchdog, explain


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / IDENTITY).touch()
    return tmp_path


def sign(rank: int, phase: str, step: int, since: float = 90.0, alive: float = 100.0) -> Sign:
    return Sign(rank, phase, step, since, alive, "node", 1000 + rank)


@pytest.mark.parametrize(
    ("signs", "world", "verdict"),
    [
        ([sign(0, "computes", 5), sign(1, "waits for a batch", 5)], 2, "process 0 waits for process 1"),
        ([sign(0, "waits for a batch", 6), sign(1, "saves", 5)], 2, "process 0 waits for process 1"),
        ([sign(0, "saves", 5), sign(1, "evaluates", 5), sign(2, "saves", 5)], 3, "processes 0, 2 wait for process 1"),
        ([sign(0, "computes", 5), sign(1, "computes", 5, alive=50.0)], 2, "process 0 waits for process 1"),
        ([sign(0, "computes", 5)], 2, "process 0 waits for process 1"),
        ([sign(0, "computes", 5), sign(1, "computes", 5)], 2, "all processes stand at the same place"),
        ([sign(0, "waits for a batch", 5)], 1, "process 0 (pid 1000 on node) waits for a batch, step 5, since 10 s"),
    ],
)
def test_who_waits_for_whom(signs: list[Sign], world: int, verdict: str) -> None:
    assert explain(signs, world, limit=8.0, now=100.0)[-1] == verdict


def test_the_silent_and_the_never_heard_of_are_told_apart() -> None:
    lines = explain([sign(0, "computes", 5), sign(1, "computes", 5, alive=50.0)], 3, limit=8.0, now=100.0)
    assert "without a sign of life for 50 s" in lines[1]
    assert lines[2] == "process 2 has never been heard of"
    assert lines[3] == "process 0 waits for processes 1, 2"


def test_a_stall_is_told_once_by_one_process_and_all_dump_their_stacks(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Watchdog(run, 0, 2, 0.4, None) as first, Watchdog(run, 1, 2, 0.4, None) as second:
        first.at("computes", 5)
        second.at("waits for a batch", 5)
        stacks = [run / STALLS / f"step-00000005-rank-{rank}.txt" for rank in (0, 1)]
        until(lambda: all(path.exists() and "most recent call first" in path.read_text() for path in stacks))
        time.sleep(0.5)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("warning: no progress for ")
    assert "process 0 waits for process 1; stacks in " in said[0]
    assert "test_a_stall_is_told_once" in stacks[0].read_text(), "the stack of the thread that stands still"
    assert {path.name for path in (run / RANKS).iterdir()} == {"rank-0.json", "rank-1.json"}


def test_who_comes_on_is_left_in_peace(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Watchdog(run, 0, 1, 0.4, 0.5) as watched:
        for step in range(20):
            watched.at("computes", step)
            time.sleep(0.05)
    assert not capsys.readouterr().out
    assert not (run / STALLS).exists()


def test_after_the_longer_limit_the_process_is_given_up(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    with Watchdog(run, 0, 1, 0.1, 0.3) as watched:
        watched.at("saves", 7)
        until(lambda: codes)
    assert codes[0] == STALLED
    assert "process 0 saves (step 7) since" in capsys.readouterr().err


def test_without_a_limit_nothing_is_watched_and_without_a_run_nothing_is_written(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 1, None, None) as watched:
        watched.at("computes", 1)
    with Watchdog(tmp_path, 0, 1, 0.04, None):
        time.sleep(0.03)
    assert not list(tmp_path.iterdir())


def test_who_is_to_be_given_up_early_is_looked_at_often_enough(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    with Watchdog(run, 0, 1, limit=3600, end=0.05):
        until(lambda: codes)
    assert set(codes) == {STALLED}


def test_a_stall_before_the_folder_is_claimed_leaves_nothing_in_its_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = ""
    with Watchdog(tmp_path, 0, 1, limit=0.05, end=None):
        while "no progress" not in said:
            said += capfd.readouterr().out
            time.sleep(0.01)
    assert "stacks in the error output" in said
    assert not list(tmp_path.iterdir())
