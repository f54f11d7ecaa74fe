"""A run that is asked to end, in whatever it is doing, saves and goes on later as if nothing had been."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from mrp.checkpoint import checkpoints
from mrp.checkpoint.saver import Saver
from mrp.cli import main
from mrp.data.held import Holding
from mrp.processes import signals
from mrp.status import status_of
from tests.forked import Started
from tests.waiting import until

STEPS = 12
METHOD = '''
"""MAE that is asked to end where MRP_EVENT says: PHASE STEP SIGNAL SECONDS-UNTIL-THE-SECOND.

With HANGUP FILE in place of the signal it makes the file, and waits until it is asked to end, or the file is gone.
"""
import gc, os, time
from typing import Literal
from mrp.objectives import mae
from mrp.processes.signals import Signals

class Config(mae.Config):
    name: Literal["eventful"] = "eventful"

class Objective(mae.Objective):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        happen("build", 0)

    def forward(self, batch, mask=None):
        if len(batch.keys) > 2:  # with two images the run only looks for parameters without a gradient
            happen("training" if self.training else "evaluation", int(batch.step))
        return super().forward(batch, mask)

def happen(phase, step):
    words = os.environ.get("MRP_EVENT", "").split()
    if words[:2] != [phase, str(step)]:
        return
    if not os.environ.get("MRP_AGAIN"):
        del os.environ["MRP_EVENT"]
    if words[2] in ("STOP", "HANGUP"):
        open(words[3], "w").close()
    else:
        os.kill(os.getpid(), int(words[2]))
    while not any(type(one) is Signals and one.asked for one in gc.get_objects()):
        if words[2] == "HANGUP" and not os.path.exists(words[3]):
            return
        time.sleep(0.01)
    if len(words) > 3 and words[2].isdigit():
        time.sleep(float(words[3]))
        os.kill(os.getpid(), int(words[2]))
        time.sleep(60)
'''


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("method") / "eventful.py"
    path.write_text(METHOD)
    return path


def words(method: Path, folder: Path, *more: str) -> list[str]:
    return [
        "pretrain", "demo", "machine.micro_batch=64",
        f"objective={{name: {method}, mask_ratio: 0.75, decoder: {{width: 16, depth: 1, heads: 2}}}}",
        f"length={STEPS} steps", "optim.warmup=2 steps", "batch=64", "backbone.depth=1", "backbone.width=32",
        "track.every=1", "checkpoint.every=3 steps", "diagnose={every: 4 steps, images: 256}", *more,
        "--folder", str(folder),
    ]  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == STEPS
    return {path.name: path.read_bytes() for path in found.folder.glob("*.safetensors")}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(method: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    main(words(method, folder))
    return folder


def told(does: Callable[..., Any], at: object) -> Callable[..., Any]:
    """The same method, before which this process is asked to end where its first argument is this one."""

    def first_told(self: object, first: object, *arguments: Any, **options: Any) -> Any:
        if first == at:
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: any(type(one) is signals.Signals and one.asked for one in gc.get_objects()))
        return does(self, first, *arguments, **options)

    return first_told


def ended(command: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    return caught.value.code


@pytest.mark.parametrize(
    ("event", "name", "step", "code"),
    [
        ("build 0 15", "SIGTERM", 0, 0),
        ("decode 0 15", "SIGTERM", 0, 0),
        ("training 4 15", "SIGTERM", 5, 0),
        ("training 4 2", "SIGINT", 5, 0),
        ("training 4 10", "SIGUSR1", 5, 75),
        ("training 0 15", "SIGTERM", 1, 0),
        ("evaluation 0 15", "SIGTERM", 4, 0),
        ("training 4 STOP", "the file", 5, 0),
        ("save 6 15", "SIGTERM", 7, 0),
    ],
)
def test_it_saves_and_goes_on(
    event: str, name: str, step: int, code: int, method: Path, undisturbed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    if event.endswith("STOP"):
        event += f" {folder / signals.STOP}"
        monkeypatch.setattr(signals, "_INTERVAL", 0.02)
    for part, method_of_it, at in ((Saver, "save", 6), (Holding, "decode", ANY)):
        if event.startswith(method_of_it):
            monkeypatch.setattr(part, method_of_it, told(getattr(part, method_of_it), at))
    monkeypatch.setenv("MRP_EVENT", event)
    held = "yes" if event.startswith("decode") else "no"
    command = words(
        method, folder, f"machine.requeue_code={75 if name == 'the file' else code}", f"machine.resident={held}"
    )
    assert ended(command) == code
    said = capsys.readouterr()
    assert f"mrp: {folder}: {name}" in said.out
    assert f"stopped at step {step} of {STEPS}; the same command goes on from there" in said.out
    assert "Traceback" not in said.err
    found = checkpoints.newest(folder)
    assert (found.step if found else 0) == step
    status = status_of(folder)
    assert status.state == ("stopped" if name in ("SIGINT", "the file") else "preempted")
    assert status.why.startswith(name)
    assert (status.step, status.steps) == (step, STEPS)
    monkeypatch.undo()
    main(command)
    assert content(folder) == content(undisturbed)
    values = [
        {key: line[key] for key in line if key.startswith(("step", "loss", "features"))} for line in lines(folder)
    ]
    whole = {line["step"]: line for line in values if "features/rank_me" in line}
    assert whole.keys() == {4, 8, 12}, "an evaluation that was interrupted is made up for"
    assert {line["step"] for line in values} == set(range(1, STEPS + 1))
    kept = {line["step"]: line["features/rank_me"] for line in lines(undisturbed) if "features/rank_me" in line}
    assert {at: line["features/rank_me"] for at, line in whole.items()} == kept


def on_terminal(terminal: str, outlives: bool, command: list[str]) -> None:
    """Runs a command line in the foreground of a terminal; with `outlives` as `nohup` starts it."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN if outlives else signal.SIG_DFL)
    opened = os.open(terminal, os.O_RDWR)  # the first one that the leader of a session opens becomes its own
    for number in (0, 1, 2):
        os.dup2(opened, number)
    os.close(opened)
    main(command)


@pytest.mark.parametrize(
    ("processes", "outlives", "state"), [(1, False, "preempted"), (2, False, "preempted"), (1, True, "finished")]
)
def test_a_terminal_that_is_closed_ends_it_in_order_and_never_by_what_it_prints(
    processes: int, outlives: bool, state: str, method: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder, here = tmp_path / "run", tmp_path / "here"
    command = words(method, folder, "machine.requeue_code=75", f"machine.micro_batch={64 // processes}")
    master, slave = os.openpty()
    event = {"MRP_EVENT": f"training 4 HANGUP {here}"}
    many = ["--processes", str(processes)] if processes > 1 else []
    run = Started(on_terminal, os.ttyname(slave), outlives, command + many, env=event)
    try:
        while not here.exists():
            assert run.process.is_alive()
            if select.select([master], [], [], 0.01)[0]:
                os.read(master, 2**16)  # a terminal takes a few thousand characters that nobody reads, and then no more
    finally:
        os.close(slave)
        os.close(master)
    if outlives:
        here.unlink()
    done = run.end()
    assert done.returncode == (0 if outlives else 75)
    status = status_of(folder)
    assert (status.state, status.why) == (state, "" if outlives else "SIGHUP")
    steps = STEPS if outlives else 5
    assert [line["step"] for line in lines(folder)] == [*range(1, steps + 1)]
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == steps
    if processes == 1:
        main(command)
        assert content(folder) == content(undisturbed)


def test_a_second_signal_ends_it_at_once_and_harms_nothing(method: Path, undisturbed: Path, tmp_path: Path) -> None:
    command = words(method, tmp_path / "run")
    environment = os.environ | {"MRP_EVENT": "training 7 15 1.2"}
    done = subprocess.run([sys.executable, "-m", "mrp", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: ends at the next step" in done.stdout
    found = checkpoints.newest(tmp_path / "run")
    assert found is not None
    assert found.step == 6
    status = status_of(tmp_path / "run")
    assert (status.state, status.why) == ("preempted", "SIGTERM, then SIGTERM: ended at once, without a checkpoint")
    main(command)
    assert content(tmp_path / "run") == content(undisturbed)
    assert status_of(tmp_path / "run").state == "finished"


def test_a_collapse_that_an_interrupted_evaluation_would_have_shown_stops_the_next_start(
    method: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = "diagnose={every: 4 steps, images: 256, min_rank: 1e9, patience: 1, after: 0 steps, action: stop}"
    monkeypatch.setenv("MRP_EVENT", "evaluation 0 15")
    assert ended(words(method, tmp_path / "run", strict)) == 0
    capsys.readouterr()
    assert ended(words(method, tmp_path / "run", strict)) == 3
    assert "the features have collapsed at step 4" in capsys.readouterr().err
    assert status_of(tmp_path / "run").state == "failed"
    assert "the features have collapsed at step 4" in status_of(tmp_path / "run").why
