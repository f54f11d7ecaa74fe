"""A fault of one process ends all of them with the same line and exit code, also where there is no launcher."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from mrp import session
from mrp.cli import main
from mrp.config import ConfigError, FaultElsewhere, Preempted, ProcessLost, Stopped
from mrp.folder import starts_of
from mrp.processes import faults
from mrp.processes.join import leave
from mrp.run import Machine
from mrp.session import Session
from tests.forked import together

LOST = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:3423")
METHOD = """
import os, signal
from typing import Literal
import torch
from mrp.objectives import mae


class Config(mae.Config):
    name: Literal["hungry"] = "hungry"


class Objective(mae.Objective):
    def forward(self, batch):
        if os.environ["RANK"] == "1" and len(batch.keys) == 16:  # a true micro-batch, not one whose cost is counted
            if os.environ["FAULT"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ["FAULT"] == "own":
                raise KeyError("labels")
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(batch)
"""


def test_a_lost_connection_is_explained_by_the_fault_of_the_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^disk: is full$"), faults.shared(tmp_path, 2):
        raise ConfigError("disk: is full")
    with pytest.raises(ConfigError, match=r"^disk: is full$"), faults.shared(tmp_path, 2):
        raise LOST
    faults.forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fault_may_be_written_after_the_connection_is_lost(tmp_path: Path) -> None:
    def fail() -> None:
        with pytest.raises(ConfigError), faults.shared(tmp_path, 2):
            raise ConfigError("late")

    timer = threading.Timer(0.3, fail)
    timer.start()
    with pytest.raises(ConfigError, match=r"^late$"), faults.shared(tmp_path, 2):
        raise LOST
    timer.join()


@pytest.mark.parametrize(
    "fault", [ConfigError("no data here"), PermissionError(13, "Permission denied", "/data"), None]
)
def test_what_one_process_cannot_open_ends_all_before_they_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    """Each would end with a traceback of a lost connection, and with NCCL by a signal."""
    here, other = object.__new__(Session), object.__new__(Session)
    here.rank, told = 7, list[object]()
    monkeypatch.setattr(session, "from_all", lambda value: told.append(value) or [None, value])

    def opened() -> str:
        if fault is not None:
            raise fault
        return "data"

    if fault is None:
        assert here.together(opened) == "data"
        return
    with pytest.raises(type(fault)) as raised:
        here.together(opened)
    assert raised.value is fault
    monkeypatch.setattr(session, "from_all", lambda value: [value, *told])
    with pytest.raises(FaultElsewhere, match=r"^process 7 on .*: .*(no data here|Permission denied: '/data')$"):
        other.together(lambda: "data")


def test_what_the_system_says_is_told_to_the_others_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), faults.shared(tmp_path, 2):
        raise OSError(5, "Input/output error", "/data/shard-7.tar")
    line = r"^/data/shard-7.tar: Input/output error; mend it and run the same command again$"
    with pytest.raises(FaultElsewhere, match=line), faults.shared(tmp_path, 2):
        raise LOST


def test_a_process_that_leaves_no_word_is_said_to_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_PATIENCE", 0.2)
    line = r"another process of this run is gone: .*closed by peer"
    with pytest.raises(ProcessLost, match=line), faults.shared(tmp_path, 2):
        raise LOST
    with pytest.raises(ZeroDivisionError), faults.shared(tmp_path, 2):
        raise ZeroDivisionError("a fault of ours, which is a traceback")
    with pytest.raises(ConfigError), faults.shared(tmp_path, 1):
        raise ConfigError("alone")
    with pytest.raises(RuntimeError, match="closed by peer"), faults.shared(tmp_path, 1):
        raise LOST
    assert not list(tmp_path.iterdir()), "a single process has nobody to tell"


@pytest.mark.parametrize("ending", [Stopped, Preempted])
def test_an_end_that_all_agree_on_is_not_taken_for_a_lost_connection(tmp_path: Path, ending: type[Exception]) -> None:
    with pytest.raises(ConfigError), faults.shared(tmp_path, 2):
        raise ConfigError("something else")
    with pytest.raises(ending), faults.shared(tmp_path, 2):
        raise ending("runs/nccl: stopped at step 5 of 9")


@pytest.mark.parametrize(
    ("fault", "codes", "line"),
    [
        ("memory", [2, 2], "machine.micro_batch: 16 images at once need more"),
        ("own", [2, 2], "/hungry.py, line 18: KeyError: 'labels'; mend the file"),
        ("killed", [1, -9], "another process of this run is gone: it was killed, its machine is lost"),
    ],
)
def test_what_ends_one_process_ends_both_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, codes: list[int], line: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    (tmp_path / "hungry.py").write_text(METHOD)
    words = [
        "pretrain", "demo", "objective.name=./hungry.py", "objective.decoder.depth=1",
        "backbone.depth=1", "backbone.width=32", "machine.workers=0", "machine.micro_batch=16", "length=20 steps",
        "optim.warmup=0 steps", "--folder", str(tmp_path / "run"),
    ]  # fmt: skip
    ended = together(2, main, words, cwd=tmp_path)
    assert [process.returncode for process in ended] == codes, ended
    for said in (process.stderr for process in ended if process.returncode > 0):
        assert any(one.startswith("mrp: error: ") and line in one for one in said.splitlines()), said
        assert "Traceback" not in said
    assert line in starts_of(tmp_path / "run")[-1]["end"]["why"]


def test_who_stops_with_the_others_stays_until_the_first_has_written(tmp_path: Path) -> None:
    for done in together(2, stop, tmp_path / "run", tmp_path / "written"):
        assert (done.returncode, done.stderr) == (0, "")


def stop(folder: Path, written: Path) -> None:
    """What a process does whose loss is not finite, where the first one takes a while to save what led to it."""

    class Slow:
        def close(self) -> None:
            time.sleep(1)
            written.touch()

    try:
        with Session.open(folder, Machine(), "fp32") as session:
            session.lock({}, {}, {}, (), 1, None)
            if session.main:
                session.closing(Slow())
            raise Stopped("the loss is not finite")
    except Stopped:
        assert written.exists()
    leave()
