"""The launcher: ranks start together, end together, and leave nothing behind. The ranks here are small scripts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mrp.processes import launch as launch_module
from tests.waiting import LONG, until

ROOT = Path(__file__).resolve().parents[2]

# Stands in for Python in `python -m mrp WORDS`: says who it is, then does what the test wants of its rank.
RANK = """#!{python}
import json, os, signal, sys, time
rank = os.environ["RANK"]
def note(text):
    with open(f"{{rank}}.log", "a") as file:
        file.write(text + "\\n")
def told(number, frame):
    note(signal.Signals(number).name)
    if number != signal.SIGUSR1:
        sys.exit(5)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, told)
with open(f"{{rank}}.new", "w") as file:
    json.dump({{"pid": os.getpid(), "words": sys.argv[1:], **os.environ}}, file)
os.rename(f"{{rank}}.new", f"{{rank}}.json")
def rest():
    for _ in range(600):
        time.sleep(0.1)
{act}
"""
LAUNCHER = """
import sys
from mrp.processes import launch as launch_module
from mrp.processes import launch
sys.executable, launch._GRACE = {rank!r}, {grace}
sys.exit(launch.launch(2, ["pretrain", "x", "--processes", "2"]))
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(act: str, grace: float = LONG) -> subprocess.Popen[str]:
        script = tmp_path / "rank.py"
        script.write_text(RANK.format(python=sys.executable, act=act))
        script.chmod(0o755)
        code = LAUNCHER.format(rank=str(script), grace=grace)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        launcher = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        with launcher, suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # where a test has failed: the launcher and its ranks


def ready(folder: Path) -> list[dict[str, object]]:
    """What the two ranks say of themselves, once both run."""
    files = [folder / "0.json", folder / "1.json"]
    until(lambda: all(file.exists() for file in files))
    return [json.loads(file.read_text()) for file in files]


def end(launcher: subprocess.Popen[str], folder: Path, said: str = "") -> int:
    """The launcher's exit code, after making sure that no rank outlives it."""
    output, _ = launcher.communicate(timeout=LONG)
    assert output == said
    for rank in ready(folder):
        assert not Path(f"/proc/{rank['pid']}").exists()
    return launcher.returncode


def log(folder: Path, rank: int) -> list[str]:
    path = folder / f"{rank}.log"
    return path.read_text().split() if path.exists() else []


def test_each_rank_gets_its_place_and_the_whole_command(start: Start, tmp_path: Path) -> None:
    launcher = start("")
    assert end(launcher, tmp_path) == 0
    first, second = ready(tmp_path)
    assert [first["RANK"], second["RANK"]] == ["0", "1"] == [first["LOCAL_RANK"], second["LOCAL_RANK"]]
    assert first["WORLD_SIZE"] == second["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2"
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert int(str(first["MASTER_PORT"])) > 1023
    assert first["MRP_LAUNCHER"] == str(launcher.pid)  # so that a rank knows when it is left alone
    assert first["words"] == second["words"] == ["-m", "mrp", "pretrain", "x", "--processes", "2"]


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("rest() if rank == '0' else sys.exit(7)", 7),
        ("rest() if rank == '1' else sys.exit(2)", 2),
        ("rest() if rank == '0' else os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_a_failing_rank_ends_all_and_its_code_is_passed_on(start: Start, tmp_path: Path, act: str, code: int) -> None:
    launcher = start(f"while not os.path.exists(f'{{1 - int(rank)}}.json'): time.sleep(0.01)\n{act}")
    said = "mrp: error: process 1 was ended by SIGKILL\n" if code == 128 + signal.SIGKILL else ""
    assert end(launcher, tmp_path, said) == code
    assert sorted(log(tmp_path, 0) + log(tmp_path, 1)) == ["SIGUSR2"]  # which a run takes for what it is


def test_one_that_ends_well_waits_for_the_others(start: Start, tmp_path: Path) -> None:
    act = "if rank == '1':\n    time.sleep(0.5)\n    note('done')"
    assert end(start(act), tmp_path) == 0
    assert log(tmp_path, 1) == ["done"]


def test_a_rank_that_does_not_listen_is_ended(start: Start, tmp_path: Path) -> None:
    act = "if rank == '0':\n    signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n    note('deaf')\n    rest()\n"
    act += "while not os.path.exists('0.log'): time.sleep(0.01)\nsys.exit(4)"
    assert end(start(act, grace=0.3), tmp_path) == 4


def test_signals_reach_every_rank(start: Start, tmp_path: Path) -> None:
    launcher = start("rest()")
    ready(tmp_path)
    launcher.send_signal(signal.SIGUSR1)
    until(lambda: log(tmp_path, 0) and log(tmp_path, 1))
    assert launcher.poll() is None, "a preemption notice is no end"
    launcher.send_signal(signal.SIGTERM)
    assert end(launcher, tmp_path) == 5
    assert log(tmp_path, 0)[:2] == log(tmp_path, 1)[:2] == ["SIGUSR1", "SIGTERM"]


def test_a_signal_while_the_ranks_start_reaches_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Rank] = []

    class Rank:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            self.heard, self.polls = list[int](), 0
            started.append(self)
            if env["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGUSR1)  # this one is not yet among those that are told

        def poll(self) -> int | None:
            self.polls += 1
            return 5 if self.heard else 9 if self.polls > 100 else None

        def send_signal(self, number: int) -> None:
            self.heard.append(number)

    monkeypatch.setattr(launch_module.subprocess, "Popen", Rank)
    assert launch_module.launch(2, ["pretrain", "x"]) == 5
    assert [rank.heard[:1] for rank in started] == [[signal.SIGUSR1]] * 2


def test_a_keyboard_interrupt_ends_all(start: Start, tmp_path: Path) -> None:
    act = "def told(*_):\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    sys.exit(130)\n"
    launcher = start(f"{act}signal.signal(signal.SIGINT, told)\nnote('ready')\nrest()")
    until(lambda: log(tmp_path, 0) and log(tmp_path, 1))
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    assert end(launcher, tmp_path) == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_who_was_asked_to_end_is_not_ended_because_another_was_faster(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    act = "def told(*_):\n    if rank == '1':\n        time.sleep(1)\n        note('saved')\n    sys.exit(75)\n"
    act += "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, 1):\n    signal.signal(number, told)\n"
    launcher = start(act + "note('ready')\nrest()")
    until(lambda: log(tmp_path, 0) and log(tmp_path, 1))
    launcher.send_signal(number)
    assert end(launcher, tmp_path) == 75
    assert log(tmp_path, 1) == ["ready", "saved"]


@pytest.mark.parametrize("chosen", [None, "en0"])
def test_processes_of_a_mac_meet_whatever_its_network_calls_it(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    seen: list[str | None] = []

    def ended(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        seen.append(env.get("GLOO_SOCKET_IFNAME"))
        return SimpleNamespace(poll=lambda: 0)

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if chosen is not None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)
    monkeypatch.setattr(launch_module.subprocess, "Popen", ended)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert launch_module.launch(2, ["pretrain", "x"]) == 0
    assert seen == [chosen or "lo0"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port that is held may not be listened at")
def test_the_port_is_kept_for_the_processes_that_meet_there() -> None:
    """Two starts at the same moment would else meet in one place: torch takes seconds before it listens."""
    with launch_module._reserved_port() as port:
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind(("127.0.0.1", port))
        store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True)
        store.set("met", "here")
        assert torch.distributed.TCPStore("127.0.0.1", port).get("met") == b"here"
