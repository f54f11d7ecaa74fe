"""Who stands still is named with what it is in and who waits for it, and everybody's stacks are kept."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from mrp.ending import GIVEN_UP, STALLED
from mrp.folder import ENVIRONMENT, IDENTITY
from mrp.monitor import watchdog
from mrp.monitor.watchdog import RANKS, STALLS, Heartbeat, Watchdog, explain, writer_elsewhere
from tests.waiting import until


class Clock:
    """A time that passes only when it is told to, so that nothing depends on how busy the machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        return form

    def pass_to(self, run: Path, seconds: float, ranks: range) -> None:
        """Time passes, and every watchdog takes note of it."""
        self.now += seconds
        until(lambda: all(noted(run, rank, "alive") == self.now for rank in ranks))


def noted(run: Path, rank: int, name: str) -> object:
    """What a watchdog has written of its process when it looked last."""
    path = run / RANKS / f"rank-{rank}.json"
    return json.loads(path.read_text())[name] if path.exists() else None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def watch(run: Path, rank: int, world: int, limit: float | None, end: float | None) -> Watchdog:
    """The watchdog of a process whose run has claimed its folder."""
    watched = Watchdog(run, rank, world, limit, end)
    watched.claimed = True
    return watched


def beat(rank: int, phase: str, step: int, since: float = 90.0, alive: float = 100.0) -> Heartbeat:
    return Heartbeat(rank, phase, step, since, alive, "node", 1000 + rank)


def test_a_run_shows_at_once_that_its_folder_is_taken(tmp_path: Path) -> None:
    """Another start, which on some disks no lock keeps out, may look a moment later."""
    watched = Watchdog(tmp_path, 0, 1, 600.0, None)
    watched.claim()
    assert json.loads((tmp_path / RANKS / "rank-0.json").read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize(
    ("heartbeats", "world", "expected"),
    [
        ([beat(0, "computes", 5), beat(1, "waits for a batch", 5)], 2, "process 0 waits for process 1"),
        ([beat(0, "waits for a batch", 6), beat(1, "saves", 5)], 2, "process 0 waits for process 1"),
        ([beat(0, "saves", 5), beat(1, "evaluates", 5), beat(2, "saves", 5)], 3, "processes 0, 2 wait for process 1"),
        ([beat(0, "computes", 5), beat(1, "computes", 5, alive=50.0)], 2, "process 0 waits for process 1"),
        ([beat(0, "computes", 5)], 2, "process 0 waits for process 1"),
        ([beat(0, "computes", 5), beat(1, GIVEN_UP, 5)], 2, "process 0 waits for process 1"),
        ([beat(0, "computes", 5), beat(1, "computes", 5)], 2, "all processes are at the same point"),
        ([beat(0, "waits for a batch", 5)], 1, "process 0 (pid 1000 on node) waits for a batch, step 5, since 10 s"),
    ],
)
def test_who_waits_for_whom(heartbeats: list[Heartbeat], world: int, expected: str) -> None:
    assert explain(heartbeats, world, limit=8.0, now=100.0)[-1] == expected


def test_the_silent_and_the_never_heard_of_are_told_apart() -> None:
    lines = explain([beat(0, "computes", 5), beat(1, "computes", 5, alive=50.0)], 3, limit=8.0, now=100.0)
    assert "without a sign of life for 50 s" in lines[1]
    assert lines[2] == "process 2 has not reported yet"
    assert lines[3] == "process 0 waits for processes 1, 2"


def test_a_stall_is_told_once_by_one_process_and_all_dump_their_stacks(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = watch(tmp_path, 0, 2, 0.1, None), watch(tmp_path, 1, 2, 0.1, None)
    first.at("computes", 5)
    second.at("waits for a batch", 5)
    with first, second:
        for _ in range(12):
            clock.pass_to(tmp_path, 0.03, range(2))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("warning: no progress for ")
    assert "process 0 waits for process 1; stacks in " in said[0]
    stacks = [(tmp_path / STALLS / f"step-00000005-rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert all(text.count("most recent call first") >= 3 for text in stacks), "of both watchdogs and what stands still"
    assert "test_a_stall_is_told_once" in stacks[0], "the stack of the thread that stands still"
    assert {path.name for path in (tmp_path / RANKS).iterdir()} == {"rank-0.json", "rank-1.json"}


def test_who_comes_on_is_left_in_peace(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with watch(tmp_path, 0, 1, 0.1, 0.2) as watched:
        for step in range(20):
            watched.at("computes", step)
            until(lambda step=step: noted(tmp_path, 0, "step") == step)
            clock.pass_to(tmp_path, 0.09, range(1))
    assert not capsys.readouterr().out
    assert not (tmp_path / STALLS).exists()


def test_after_its_own_limit_the_process_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    watched = watch(tmp_path, 0, 1, limit=3600, end=0.05)  # which has to be looked at more often than the other
    watched.at("saves", 7)
    with watched:
        until(lambda: codes)
    assert codes[0] == STALLED
    assert "process 0 saves (step 7) since" in capsys.readouterr().err


def test_the_last_word_is_not_overwritten_by_what_wakes_up(tmp_path: Path) -> None:
    """The script of a SLURM job reads it."""
    watched = watch(tmp_path, 0, 1, 600.0, 900.0)
    watched._last_words("process 0 computes")
    watched.at("computes", 8)
    watched._check(600.0)
    assert noted(tmp_path, 0, "phase") == GIVEN_UP


def test_who_is_given_up_leaves_the_report_to_the_next(tmp_path: Path) -> None:
    watch(tmp_path, 0, 2, 600.0, 900.0)._last_words("process 0 computes")
    assert watch(tmp_path, 1, 2, 600.0, 900.0)._is_first_alive(600.0)


def test_a_disk_that_hangs_does_not_keep_a_process_from_being_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    answers = threading.Event()
    for module, name in ((watchdog, "write_atomically"), (watchdog.ending, "note")):
        monkeypatch.setattr(module, name, lambda *_: answers.wait())
    monkeypatch.setattr(watchdog.ending, "_LAST_WORDS", 0.01)
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    with watch(tmp_path, 0, 1, 0.05, 0.2):
        try:
            until(lambda: codes)
        finally:
            answers.set()
    assert codes[0] == STALLED


def test_without_a_limit_nothing_is_watched_and_without_a_run_nothing_is_written(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 1, None, None) as watched:
        watched.at("computes", 1)
    with Watchdog(tmp_path, 0, 1, 0.04, None):
        time.sleep(0.03)
    assert not list(tmp_path.iterdir())


def test_a_stall_before_the_folder_is_claimed_leaves_nothing_in_its_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / IDENTITY).touch()  # of another process, which trains the same run there
    said = list[str]()
    with Watchdog(tmp_path, 0, 1, limit=0.05, end=None):
        until(lambda: said.append(capfd.readouterr().out) or any("stacks in" in text for text in said))
    line = r"no progress for \d+ s: process 0 \(.*\) opens the data, step 0, .*; stacks in the error output"
    assert re.search(line, "".join(said))
    assert [path.name for path in tmp_path.iterdir()] == [IDENTITY]


def test_who_has_not_reported_yet_is_not_taken_for_who_had_its_place_before(tmp_path: Path) -> None:
    watch(tmp_path, 1, 2, 600.0, None)._check(600.0)
    assert noted(tmp_path, 1, "phase") == watchdog.JOINS
    watchdog.forget(tmp_path)
    assert not watch(tmp_path, 0, 2, 600.0, None)._heartbeats()


def test_a_clock_that_is_set_anew_ends_no_healthy_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    with Watchdog(tmp_path, 0, 1, 20.0, 30.0) as guard:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        guard._check(20.0)
        guard._check_end(30.0)
    assert not ended
    assert "no progress" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "start", "beats", "locks", "found"),
    [
        ("other", {}, True, True, "process 1 on other"),
        ("other", {}, False, True, None),
        ("other", {"end": {"state": "preempted"}}, True, True, None),
        (socket.gethostname(), {}, True, True, None),
        (socket.gethostname(), {}, True, False, f"process 1 on {socket.gethostname()}"),
    ],
    ids=[
        "goes on",
        "is gone",
        "has ended",
        "is this machine, whose lock tells",
        "is this machine, on a disk without locks",
    ],
)
def test_a_run_that_another_machine_writes_is_known_by_its_heartbeat(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    start: dict[str, object],
    beats: bool,
    locks: bool,
    found: str | None,
) -> None:
    """Its lock may be seen on its own machine alone."""
    monkeypatch.setattr(watchdog, "is_locked", lambda _: False if locks else None)
    (tmp_path / ENVIRONMENT).write_text(json.dumps({"starts": [start]}))
    (tmp_path / RANKS).mkdir()
    beat = tmp_path / RANKS / "rank-0.json"
    beat.write_text(json.dumps({"host": host, "pid": 1, "alive": 5.0}))
    monkeypatch.setattr(watchdog, "_UNSEEN", 0.2)

    now = [0.0]

    def sleep(_: float) -> None:
        now[0] += 0.15
        if beats:
            beat.write_text(json.dumps({"host": host, "pid": 1, "alive": 15.0}))

    monkeypatch.setattr(watchdog.time, "sleep", sleep)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    assert writer_elsewhere(tmp_path, print) == found
