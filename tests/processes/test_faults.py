"""A fault of one process ends all of them with the same line and exit code, also where there is no launcher."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mrp import outside, session
from mrp.cli import main
from mrp.config import ConfigError, FaultElsewhere, Preempted, ProcessLost, Stopped
from mrp.folder import starts_of
from mrp.processes import faults
from mrp.processes.join import leave
from mrp.run import Machine
from mrp.session import Session
from tests.forked import together

LOST = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:3423")
GONE = [  # as gloo, torch's store and NCCL say it
    "[unbound_buffer.cc:84] Timed out waiting 1800000ms for recv operation to complete",
    "Application timeout caused pair closure",
    "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.27.5\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketProgress: Connection closed by remote peer node-7",
]
OWN = [  # of this process, or perhaps of this process
    "NCCL error in: NCCLUtils.hpp:268, unhandled cuda error, NCCL version 2.27.5\nLast error:\nCuda failure 999",
    "the annotation service closed its socket",
    "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: connection refused by the annotation service",
]
MINE = """
def ask():
    raise RuntimeError("connection refused by the annotation service")

def exchange(with_others):
    with_others()
"""
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


SOURCE = """
import os, signal
from typing import Literal
import numpy as np
from mrp.config import Node
from mrp.data import source


class Config(Node):
    name: Literal["source"] = "source"


class Source(source.Source):
    identity = "0" * 64

    def __init__(self, config, split, cache):
        if os.environ["RANK"] == "1":
            if os.environ["FAULT"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("labels")

    def __len__(self):
        return 128

    def read(self, index):
        return np.zeros((8, 8, 1), np.uint8), -1
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
    monkeypatch.setattr(session, "from_all", lambda value: told.append(value) or [None, None])

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
    with pytest.raises(
        FaultElsewhere, match=r"^process 7 on .*: .*(no data here|/data: Permission denied; mend it .*)$"
    ):
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


@pytest.mark.parametrize("said", GONE)
def test_whatever_says_that_another_process_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(faults, "_PATIENCE", 0.0)
    with pytest.raises(ProcessLost, match=re.escape(f"({' '.join(said.split())});")), faults.shared(tmp_path, 2):
        raise RuntimeError(said)


@pytest.mark.parametrize("said", OWN)
def test_an_error_of_this_process_stays_its_own_unless_another_has_told_its_fault(tmp_path: Path, said: str) -> None:
    for context in (faults.shared, faults.lost):
        with pytest.raises(RuntimeError) as raised, context(tmp_path, 2):
            raise RuntimeError(said)
        assert type(raised.value) is RuntimeError
    with pytest.raises(ConfigError), faults.shared(tmp_path, 2):
        raise ConfigError("disk: is full")
    with pytest.raises(FaultElsewhere, match=r"^disk: is full$"), faults.shared(tmp_path, 2):
        raise RuntimeError(said)


def test_a_file_of_ones_own_is_at_fault_for_its_own_connections_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_PATIENCE", 0.0)
    run, path, torchs = tmp_path / "run", tmp_path / "mine.py", dict[str, Any]()
    run.mkdir()
    path.write_text(MINE)
    mine = outside.load(path, "thing")
    exec(compile(f"def gather(): raise RuntimeError({str(LOST)!r})", "/lib/torch/distributed/c10d.py", "exec"), torchs)
    with pytest.raises(ProcessLost), faults.shared(run, 2):
        mine.exchange(torchs["gather"])
    assert faults.told(run) is None
    with pytest.raises(RuntimeError, match="annotation service"), faults.shared(run, 2):
        mine.ask()
    line = f"{path}, line 3: RuntimeError: connection refused by the annotation service; mend the file"
    assert faults.told(run) == line


@pytest.mark.parametrize("ending", [Stopped, Preempted])
def test_an_end_that_all_agree_on_is_not_taken_for_a_lost_connection(tmp_path: Path, ending: type[Exception]) -> None:
    with pytest.raises(ConfigError), faults.shared(tmp_path, 2):
        raise ConfigError("something else")
    for context in (faults.shared, faults.lost):
        with pytest.raises(ending), context(tmp_path, 2):
            raise ending("runs/broken pipe: stopped at step 5 of 9")


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


@pytest.mark.parametrize(
    ("fault", "codes", "line"),
    [
        ("own", [2, 2], "/source.py, line 20: KeyError: 'labels'; mend the file"),
        ("killed", [1, -9], "another process of this run is gone: it was killed, its machine is lost"),
    ],
)
def test_what_ends_one_process_while_the_data_are_opened_ends_both_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, codes: list[int], line: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    (tmp_path / "source.py").write_text(SOURCE)
    run = tmp_path / "run"
    run.mkdir()
    (run / faults.FILE).write_text("what an earlier start has left")
    words = ["pretrain", "demo", "data.train=./source.py", "machine.workers=0", "--folder", str(run)]
    ended = together(2, main, words, cwd=tmp_path)
    assert [process.returncode for process in ended] == codes, ended
    for said in (process.stderr for process in ended if process.returncode > 0):
        assert any(one.startswith("mrp: error: ") and line in one for one in said.splitlines()), said
        assert "Traceback" not in said


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
