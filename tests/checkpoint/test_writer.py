"""The process that writes: it outlives signals and its master's death for one checkpoint, and never any longer."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrp.checkpoint import sealed, writer
from mrp.checkpoint.sealed import Keep
from mrp.checkpoint.writer import WriteError, Writer, wait_for_others
from tests.waiting import ended, until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Writer]:
    found = Writer(tmp_path)
    yield found
    found.close()


def order(own: Writer, step: int, content: bytes = b"hello") -> None:
    room = own.memory(len(content) + 8)
    room[8 : 8 + len(content)] = content
    own.start(step, {"model.safetensors": (8, len(content)), "empty": (8, 0)}, Keep(2))


def pid(own: Writer) -> int:
    assert own._process is not None
    return own._process.pid


def written(run: Path, step: int) -> bytes:
    folder = run / "checkpoints" / f"step-{step:08d}"
    assert sealed.fault(folder) is None
    return (folder / "model.safetensors").read_bytes()


def test_what_lies_in_the_memory_is_written(tmp_path: Path, own: Writer) -> None:
    assert own.finished(wait=True) is None
    for step, content in ((1, b"first"), (2, b"second, which is longer" * 1000), (3, b"third")):
        order(own, step, content)
        assert own.step == step
        report = own.finished(wait=True)
        assert report is not None
        assert (report.step, report.size) == (step, len(content))
        assert report.seconds > 0
        assert own.step is None
        assert written(tmp_path, step) == content
    assert list(sealed.numbered(tmp_path / "checkpoints")) == [2, 3]


def test_asking_does_not_wait(tmp_path: Path, own: Writer) -> None:
    order(own, 1)
    asked = 0
    while (report := own.finished()) is None:
        asked += 1
        time.sleep(0.001)
    assert asked > 0  # a process does not start in no time
    assert report.step == 1


def test_an_error_is_raised_here_and_the_next_order_is_obeyed(tmp_path: Path, own: Writer) -> None:
    (tmp_path / "checkpoints").touch()
    order(own, 1)
    with pytest.raises(WriteError, match="File exists"):
        own.finished(wait=True)
    (tmp_path / "checkpoints").unlink()
    order(own, 2)
    own.finished(wait=True)
    assert written(tmp_path, 2) == b"hello"


def test_a_writer_that_is_killed_is_missed_and_replaced(tmp_path: Path, own: Writer) -> None:
    order(own, 1)
    own.finished(wait=True)
    for step in (2, 3):
        os.kill(pid(own), signal.SIGKILL)
        os.waitid(os.P_PID, pid(own), os.WEXITED | os.WNOWAIT)
        with pytest.raises(WriteError, match="ended by SIGKILL"):
            order(own, step)
        assert own.step is None
        order(own, step)
        own.finished(wait=True)
        assert written(tmp_path, step) == b"hello"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_that_end_training_do_not_reach_it(tmp_path: Path, own: Writer, number: signal.Signals) -> None:
    order(own, 1)
    own.finished(wait=True)  # so that it is up
    assert os.getpgid(pid(own)) == pid(own)  # Ctrl-C goes to the terminal's group, and this is another
    os.kill(pid(own), number)
    order(own, 2)
    own.finished(wait=True)
    assert written(tmp_path, 2) == b"hello"


def test_it_knows_no_torch(tmp_path: Path, own: Writer) -> None:
    order(own, 1)
    own.finished(wait=True)
    mapped = Path(f"/proc/{pid(own)}/maps").read_text()
    assert "python" in mapped
    assert not any(name in mapped for name in ("libtorch", "libcuda", "numpy"))


def test_it_ends_when_it_is_let_go(tmp_path: Path) -> None:
    own = Writer(tmp_path)
    order(own, 1, bytes(1 << 20))
    process = own._process
    assert process is not None
    own.close()
    assert process.returncode == 0
    assert len(written(tmp_path, 1)) == 1 << 20


MASTER = """
import os, signal, sys, time
from pathlib import Path
from mrp.checkpoint.sealed import Keep
from mrp.checkpoint.writer import Writer
run, keeps_open = Path(sys.argv[1]), sys.argv[2] == "open"
own = Writer(run)
size = 16 << 20
room = own.memory(size)
own.start(1, {"model.safetensors": (0, 5)}, Keep(9))
own.finished(wait=True)
if keeps_open and os.fork() == 0:  # as a data loading process does, which inherits the pipe
    os.setsid()
    time.sleep(60)
    os._exit(0)
own.start(2, {"model.safetensors": (0, size)}, Keep(9))
print(own._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("pipe", ["closed", "open"])
def test_its_master_is_killed(tmp_path: Path, pipe: str) -> None:
    root = Path(writer.__file__).parent.parent.parent
    master = subprocess.Popen(
        [sys.executable, "-c", MASTER, str(tmp_path), pipe], stdout=subprocess.PIPE, cwd=root, start_new_session=True
    )
    with master:
        assert master.stdout is not None
        number = int(master.stdout.readline())
        master.kill()
        master.wait()
        said: list[str] = []
        time.sleep(0.05)
        wait_for_others(tmp_path, said.append)  # or the run that goes on would decide while this one still writes
        found = sealed.numbered(tmp_path / "checkpoints")
        assert all(sealed.fault(folder) is None for folder in found.values())
        until(lambda: ended(number))
    assert list(sealed.numbered(tmp_path / "checkpoints")) == [1, 2]
    assert len(written(tmp_path, 2)) == 16 << 20
    for process in Path("/proc").glob("[0-9]*/cmdline"):  # the one that kept the pipe open
        try:
            if str(tmp_path).encode() in process.read_bytes():
                os.kill(int(process.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass


def test_waiting_for_others_has_an_end(tmp_path: Path) -> None:
    wait_for_others(tmp_path, print)  # nothing was ever written
    with (tmp_path / ".writer").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WriteError, match="the writer of an earlier process has not finished"):
            wait_for_others(tmp_path, print, limit=0.05)
    wait_for_others(tmp_path, print)
