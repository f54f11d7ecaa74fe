"""The state of a run, told from its folder: each end leaves a word, and a kill leaves a lock that nobody holds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mrp
from mrp import ending, status
from mrp.checkpoint.sealed import MANIFEST
from mrp.config import ConfigError, Preempted, Stopped
from mrp.folder import ENVIRONMENT, IDENTITY, claim
from mrp.locking import LOCK
from mrp.monitor.bests import BESTS
from mrp.monitor.metrics import METRICS, Metrics
from mrp.monitor.watchdog import Heartbeat
from mrp.status import Status, status_of
from mrp.trackers.none import Config

WHO = {"batch": 8, "length": "10 steps"}


def lived(folder: Path, error: BaseException | None = None, asked: str | None = None) -> Status:
    """Returns the state of a run that has ended in this way after four of its ten steps."""
    with claim(folder, {"batch": 8}, WHO, steps=10):
        logged(folder, 4)
        with contextlib.suppress(type(error or ValueError())), ending.noted(folder, lambda: asked):
            if error is not None:
                raise error
    return status_of(folder)


def logged(folder: Path, steps: int, **more: float) -> None:
    metrics = Metrics(Config(), folder, {}, 0)
    for step in range(1, steps + 1):
        metrics.log(step, {"loss": 1 / step, "images_per_second": 16.0, "epoch": step / 2, **more})
    metrics.close()


@pytest.mark.parametrize(
    ("error", "asked", "state", "why"),
    [
        (None, None, "finished", ""),
        (Preempted("run: SIGTERM: stopped"), "SIGTERM", "preempted", "SIGTERM"),
        (Preempted("run: stopped"), None, "preempted", "another process was asked to end"),
        (Preempted("run: SIGINT: stopped"), "SIGINT", "stopped", "SIGINT"),
        (Preempted("run: stopped"), "the file run/STOP", "stopped", "the file run/STOP"),
        (ConfigError("machine.micro_batch: too large"), None, "failed", "machine.micro_batch: too large"),
        (Stopped("the features have collapsed"), None, "failed", "the features have collapsed"),
        (ZeroDivisionError("by\nzero"), None, "failed", "ZeroDivisionError: by zero"),
        (
            OSError(28, "No space left on device", "/runs/a"),
            None,
            "failed",
            "/runs/a: No space left on device; mend it and run the same command again",
        ),
    ],
)
def test_every_end_leaves_a_word(
    error: BaseException | None, asked: str | None, state: str, why: str, tmp_path: Path
) -> None:
    found = lived(tmp_path, error, asked)
    assert (found.state, found.why) == (state, why)
    assert (found.step, found.steps, found.loss, found.starts) == (4, 10, 0.25, 1)
    assert found.progress == 0.4
    assert found.seconds_left is None


def test_only_the_last_start_counts(tmp_path: Path) -> None:
    lived(tmp_path, Stopped("not finite"))
    found = lived(tmp_path)
    assert (found.state, found.starts) == ("finished", 2)
    assert [start["end"]["state"] for start in json.loads((tmp_path / ENVIRONMENT).read_text())["starts"]] == [
        "failed",
        "finished",
    ]
    with claim(tmp_path, {"batch": 8}, WHO, steps=10):
        assert status_of(tmp_path).state == "running"


HOLD = f"""
import sys
from pathlib import Path
from mrp import ending
from mrp.folder import claim
with claim(Path(sys.argv[1]), {{"batch": 8}}, {WHO!r}, steps=10), ending.noted(Path(sys.argv[1]), lambda: None):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_dead_run_is_told_from_a_living_one_by_its_lock(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=Path(mrp.__file__).parent.parent, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        logged(tmp_path, 4)
        alive = status_of(tmp_path)
        assert alive.state == "running"
        assert alive.seconds_left == 6 * 8 / 16.0
    finally:
        other.kill()
        other.communicate()
    dead = status_of(tmp_path)
    assert (dead.state, dead.step) == ("died", 4)
    assert "left no word" in dead.why


def test_whoever_looks_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    import fcntl
    import threading

    lived(tmp_path)
    with (tmp_path / LOCK).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN))
        timer.start()
        assert lived(tmp_path).state == "finished"
        timer.join()


def test_a_process_that_does_not_hold_the_run_leaves_no_word(tmp_path: Path) -> None:
    lived(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": os.getpid()}))
    ending.note(tmp_path, ending.FAILED, "of another run")
    assert status_of(tmp_path).state == "finished"


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    environment = json.loads((folder / ENVIRONMENT).read_text())
    change(environment["starts"][-1])
    (folder / ENVIRONMENT).write_text(json.dumps(environment))


def test_a_lock_of_another_machine_proves_nothing(tmp_path: Path) -> None:
    lived(tmp_path)
    edited(tmp_path, lambda start: start.pop("end"))
    (tmp_path / LOCK).write_text(json.dumps({"host": "node-7", "pid": 3}))
    for path in (tmp_path / name for name in (METRICS, ENVIRONMENT, IDENTITY)):
        os.utime(path, (time.time() - 7300,) * 2)
    found = status_of(tmp_path)
    assert (found.state, found.why) == ("unknown", "on node-7, last sign of life 2 h 1 min ago")


def test_a_run_without_a_word_or_a_holder(tmp_path: Path) -> None:
    lived(tmp_path)
    edited(tmp_path, lambda start: start.pop("end"))
    (tmp_path / LOCK).write_text("")
    assert status_of(tmp_path).state == "ended"
    edited(tmp_path, lambda start: start.update(steps=4))
    assert status_of(tmp_path).state == "finished"


@pytest.mark.parametrize(
    ("phase", "idle", "state", "why"),
    [
        ("computes", 1, "running", "computes"),
        ("waits for a batch", 1, "running", "waits for a batch"),
        ("waits for a batch", 400, "waiting for data", "for 6 min 40 s"),
        ("evaluates", 400, "running", "evaluates for 6 min 40 s"),
    ],
)
def test_what_a_run_does_now(phase: str, idle: float, state: str, why: str, tmp_path: Path) -> None:
    with claim(tmp_path, {"batch": 8}, WHO, steps=10):
        now = time.time() + 1
        (tmp_path / ".ranks").mkdir()
        beat = Heartbeat(0, phase, 3, now - idle, now, "here", 1)
        path = tmp_path / ".ranks" / "rank-0.json"
        path.write_text(json.dumps({key: getattr(beat, key) for key in beat.__slots__}))
        found = status_of(tmp_path)
        assert (found.state, found.why) == (state, why)
        path.write_text(json.dumps({"phase": phase, "since": now - 3600 - idle, "alive": now - 3600}))
        assert status_of(tmp_path).why == "", "what an earlier start has left counts for nothing"


def test_the_fault_of_another_process_is_the_reason(tmp_path: Path) -> None:
    lived(tmp_path, Preempted("run: SIGTERM"), "SIGTERM")
    (tmp_path / ".fault").write_text("data.train: image 7 is damaged")
    found = status_of(tmp_path)
    assert (found.state, found.why) == ("failed", "data.train: image 7 is damaged")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"starts": 1}', '{"starts": [{"time": 7, "steps": "x"}]}'])
def test_damaged_files_count_as_not_known(text: str, tmp_path: Path) -> None:
    (tmp_path / ".ranks").mkdir()
    for name in (IDENTITY, ENVIRONMENT, METRICS, LOCK, BESTS, ".ranks/rank-0.json"):
        (tmp_path / name).write_text(text)
    assert status_of(tmp_path).state in ("never started", "ended")


def test_the_time_left_holds_evaluations_which_the_rate_leaves_out() -> None:
    lines = [{"step": 0, "knn/seconds": 50.0}, {"step": 5, "knn/seconds": 6.0}, {"step": 10, "loader/waiting": 0.5}]
    lines.append({"step": 20, "knn/seconds": 6.0, "linear/average/seconds": 28.0})
    assert status._evaluating(lines) == pytest.approx(2.0)
    # What comes rarely is not taken for something that comes with each of the last lines.
    rare = [{"step": 995, "loss": 1.0}, {"step": 1000, "linear/seconds": 3600.0}]
    assert status._evaluating(rare) == pytest.approx(3.6)
    assert status._evaluating(lines[:1]) == status._evaluating([]) == 0.0


def test_the_best_values_are_kept_apart(tmp_path: Path) -> None:
    metrics = Metrics(Config(), tmp_path, {}, 0)
    for step, (accuracy, loss) in enumerate([(0.3, 2.0), (0.5, 1.5), (0.4, 1.0)], start=1):
        metrics.log(
            step,
            {"loss": 1.0, "knn/accuracy": accuracy, "validation/loss": loss, "memory/host_gib": 1.0, "knn/seconds": 9}
            | {"loader/waiting": 0.1, "reconstructions/error": loss},
        )
    metrics.close()
    assert status_of(tmp_path).best == {
        "knn/accuracy": (0.5, 2), "validation/loss": (1.0, 3), "reconstructions/error": (1.0, 3),
    }  # fmt: skip
    Metrics(Config(), tmp_path, {}, 1).close()  # resumed at step 1: what came after it is not there any more
    assert status_of(tmp_path).best == {
        "knn/accuracy": (0.3, 1), "validation/loss": (2.0, 1), "reconstructions/error": (2.0, 1),
    }  # fmt: skip


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    with claim(tmp_path, {"batch": 8}, WHO, steps=10**7), (tmp_path / METRICS).open("w") as file:
        file.write(" " * 5_000_000 + "\n" + '{"step": 9, "loss": 0.5}\n{"step": 10, "lo')
        file.flush()
        found = status_of(tmp_path)
    assert (found.step, found.loss) == (9, 0.5)
    assert status.last_lines(tmp_path / METRICS, 60) == [{"step": 9, "loss": 0.5}]


def test_runs_are_found_in_folders_of_folders(tmp_path: Path) -> None:
    for name in ("b/seed-1", "a", "a/paper-00000004", "a/checkpoints/step-00000004"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / IDENTITY).write_text("{}")
    (tmp_path / "b" / "link").symlink_to(tmp_path)
    (tmp_path / "b" / ".hidden").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in status.find(tmp_path)] == ["a", "a/paper-00000004", "b/seed-1"]
    (tmp_path / "b" / "seed-1" / MANIFEST).touch()  # a checkpoint on its own, which names its run too
    assert [path.name for path in status.find(tmp_path)] == ["a", "paper-00000004"]
    assert list(status.find(tmp_path / "a")) == [tmp_path / "a", tmp_path / "a" / "paper-00000004"]


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for path in (tmp_path / "one", tmp_path / "deep" / "er" / "two"):
        path.write_bytes(b"x" * 1000)
    assert status.size_of(tmp_path) == 2000
    assert status.size_of(tmp_path, most=1) == 1000
