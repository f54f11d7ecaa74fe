"""Numbers of a run: every step once and in order, however often the run was killed, wherever they are shown."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mrp.config import ConfigError
from mrp.environment import code_version
from mrp.monitor import metrics
from mrp.monitor import shown as shown_module
from mrp.monitor.journal import Journal, Spikes
from mrp.monitor.metrics import METRICS, Metrics, cut, read_lines
from mrp.run import load
from mrp.trackers import TRACKERS, Section, none, parts, tensorboard
from mrp.trackers import wandb as wandb_tracker
from tests.trained import NARROW, pretrained
from tests.waiting import LONG, until


def record(folder: Path, config: Section, start: int, stop: int) -> None:
    """Log the steps after `start` up to `stop`, as a run does that goes on from a checkpoint at `start`."""
    tracker = Metrics(config, folder, {"batch": 8}, start)
    for step in range(start + 1, stop + 1):
        tracker.log(step, {"loss": 1 / step})
    tracker.close()


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def test_values_are_written_at_once_and_are_valid_json(tmp_path: Path) -> None:
    tracker = Metrics(none.Config(), tmp_path, {}, 0)
    tracker.log(3, {"loss": 0.1, "norm": math.nan, "lr": math.inf, "epoch": -math.inf})
    line = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert line == {"step": 3, "loss": 0.1, "norm": "nan", "lr": "inf", "epoch": "-inf"}
    assert [float(line[name]) for name in ("norm", "lr", "epoch")] == pytest.approx(
        [math.nan, math.inf, -math.inf], nan_ok=True
    )
    tracker.close()


def test_each_step_appears_once_after_a_kill(tmp_path: Path) -> None:
    record(tmp_path, none.Config(), 0, 10)
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:-5])  # torn within the line of step 10
    record(tmp_path, none.Config(), 6, 12)
    assert steps(tmp_path) == list(range(1, 13))
    record(tmp_path, none.Config(), 0, 2)  # killed before the first checkpoint: all over again
    assert steps(tmp_path) == [1, 2]


@given(torn=st.integers(0, 400), at=st.integers(0, 12))
def test_wherever_the_file_is_torn(tmp_path_factory: pytest.TempPathFactory, torn: int, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / METRICS
    whole = [json.dumps({"step": step, "loss": 0.5 / step}) for step in range(1, 11)]
    path.write_text("".join(line + "\n" for line in whole)[:torn])
    present = [line for line in path.read_text().split("\n") if line in whole]
    cut(path, at)
    assert path.read_text() == "".join(line + "\n" for line in present[:at])


@pytest.mark.parametrize(
    "noise", [b"\x00" * 40 + b"\n", b"\xff\xfe\n", b"[1]\n", b"7\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"\n"]
)
def test_what_is_no_line_of_ours_is_passed_over_and_dropped_at_the_end(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / METRICS
    path.write_bytes(b'{"step": 1}\n' + noise + b'{"step": 2}\n' + noise)
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    cut(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n' + noise + b'{"step": 2}\n'
    cut(path, 1)
    assert path.read_bytes() == b'{"step": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


@given(at_once=st.integers(1, 60), lengths=st.lists(st.integers(0, 40), max_size=6), torn=st.integers(0, 9))
def test_lines_are_read_from_the_end_too(
    tmp_path_factory: pytest.TempPathFactory, at_once: int, lengths: list[int], torn: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "backwards.jsonl"
    lines = [json.dumps({"step": step, "text": "x" * length}) + "\n" for step, length in enumerate(lengths)]
    path.write_text("".join(lines) + '{"step": 9,'[:torn])
    ends = np.cumsum([len(line) for line in lines], dtype=int).tolist()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "_AT_ONCE", at_once)
        assert list(metrics.from_the_end(path)) == [*zip(ends, read_lines(path), strict=True)][::-1]


def test_a_long_run_goes_on_without_its_log_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / METRICS
    path.write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1, 5001)))
    read: list[bytes] = []
    sound = metrics._sound
    monkeypatch.setattr(metrics, "_sound", lambda content: (read.append(content), sound(content))[1])
    monkeypatch.setattr(metrics, "_AT_ONCE", 1000)
    cut(path, 4990)
    Spikes(line for _, line in metrics.from_the_end(path))
    assert len(read) < 200
    read.clear()
    assert next(metrics.each_line(path))["step"] == len(read) == 1  # one at a time


def test_the_log_is_on_the_disk_before_a_checkpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power would else leave a checkpoint of a step that the log has never reached."""
    asked: list[str] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        asked.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    words = ["length=2 steps", "optim.warmup=0 steps", "checkpoint.every=1 steps", "checkpoint.asynchronous=false"]
    pretrained(tmp_path / "run", *NARROW, *words)
    saved = [number for number, name in enumerate(asked) if name == "model.safetensors"]
    logged = [number for number, name in enumerate(asked) if name == METRICS]
    assert len(saved) == len(logged) == 2
    assert all(log < save for log, save in zip(logged, saved, strict=True))


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    tracker = Metrics(none.Config(), tmp_path, {}, 0)
    tracker._file.close()
    tracker._file = open("/dev/full", "w")  # noqa: SIM115 -- closed with the tracker
    with pytest.raises(ConfigError, match=f"^{tmp_path / METRICS}: cannot be written: No space left on device; "):
        tracker.log(1, {"loss": 1.0})
    with pytest.raises(ConfigError, match="No space left on device"):
        tracker.close()
    assert tracker._file.closed


def test_a_tracker_is_a_name_or_a_section() -> None:
    assert TRACKERS.read("wandb") == wandb_tracker.Config()
    assert TRACKERS.read({"name": "wandb", "mode": "offline"}) == wandb_tracker.Config(mode="offline")
    assert TRACKERS.read({"every": 5}) == none.Config(every=5)
    assert parts(none.Config()) == []


def test_several_trackers_share_their_options() -> None:
    several = wandb_tracker.Config(also=("tensorboard", "none", "wandb"), project="mine", mode="offline", every=3)
    _, other = parts(several)
    assert other == tensorboard.Config(project="mine", mode="offline", every=3)
    assert load("demo", ["track={name: tensorboard, also: [wandb]}"]).track.also == ("wandb",)
    with pytest.raises(ConfigError, match=r"unknown tracker 'wandbb'; did you mean 'wandb'"):
        load("demo", ["track.also=[wandbb]"])
    with pytest.raises(ConfigError, match=r"several trackers are one section: \{name: wandb, also: \[tensorboard\]\}"):
        load("demo", ["track=[wandb, tensorboard]"])


# A tracker that does not do what it should: in a file of its own, as users write them.

TRACKER = """
import threading
from mrp.trackers import Section

calls, hold = [], threading.Event()

class Config(Section):
    name: str = "mine"

class Tracker:
    def __init__(self, config, folder, resolved, resumed_at):
        {start}

    def log(self, step, values):
        calls.append(("log", step))
        {log}

    def picture(self, step, name, array):
        calls.append(("picture", step, name, array.shape))

    def summary(self, values):
        calls.append(("summary", values))

    def close(self):
        calls.append(("close",))
"""


def own(folder: Path, start: str = "pass", log: str = "pass") -> tuple[Section, Any]:
    """Returns the section of a tracker in a file of its own, and its module."""
    path = folder / "mine.py"
    path.write_text(TRACKER.format(start=start, log=log))
    section = TRACKERS.read({"name": str(path)})
    assert isinstance(section, Section)
    return section, TRACKERS.find(str(path))


def logged(folder: Path, section: Section, count: int = 3, seconds: float = shown_module.LAST) -> list[str]:
    """Returns what is said while so many steps are logged."""
    said: list[str] = []
    metrics = Metrics(section, folder, {}, 0, said.append)
    for step in range(1, count + 1):
        metrics.log(step, {"loss": 1.0, "knn/accuracy": step / 10})
        metrics.picture(step, "images", np.zeros((2, 3, 3), np.uint8))
    metrics.close(seconds)
    assert steps(folder) == list(range(1, count + 1)), "the file of the run is complete"
    return said


def test_a_tracker_is_given_all_in_order(tmp_path: Path) -> None:
    section, module = own(tmp_path)
    assert logged(tmp_path, section, 2) == []
    assert module.calls == [
        ("log", 1), ("picture", 1, "images", (2, 3, 3)), ("log", 2), ("picture", 2, "images", (2, 3, 3)),
        ("summary", {"knn/accuracy": 0.2}), ("close",),
    ]  # fmt: skip


def test_a_step_whose_evaluation_was_interrupted_is_shown_once_and_whole(tmp_path: Path) -> None:
    """wandb takes a step only once, and would drop what the evaluation has measured when it was made up for."""
    section, module = own(tmp_path, log="calls.append(values)")
    for start, values in ((0, {"loss": 2.0, metrics.INTERRUPTED: 1.0}), (5, {metrics.INTERRUPTED: 1.0})):
        run = Metrics(section, tmp_path, {}, start)
        run.log(5, values)
        run.close()
    assert ("log", 5) not in module.calls
    run = Metrics(section, tmp_path, {}, 5)
    run.log(5, {"knn/accuracy": math.nan})
    run.log(6, {"loss": 1.0})
    run.close()
    shown = [call for call in module.calls if call not in (("close",), ("summary", {}))]
    assert shown[:3] == [("log", 5), {"loss": 2.0, "knn/accuracy": pytest.approx(math.nan, nan_ok=True)}, ("log", 6)]
    assert shown[3] == {"loss": 1.0}
    assert steps(tmp_path) == [5, 5, 5, 6]


def test_a_tracker_that_changes_what_it_is_given_changes_it_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, module = own(tmp_path, log="calls.append(dict(values)); values.clear()")
    monkeypatch.setattr("mrp.monitor.metrics.parts", lambda track: [track, track])
    given = {"loss": 1.0}
    metrics = Metrics(section, tmp_path, {}, 0)
    metrics.log(1, given)
    metrics.close()
    assert [call for call in module.calls if isinstance(call, dict)] == [{"loss": 1.0}] * 2
    assert given == {"loss": 1.0}


def test_where_one_tracker_refuses_those_that_have_begun_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "refusing").mkdir()
    sound, module = own(tmp_path / "sound")
    refusing, _ = own(tmp_path / "refusing", start="from mrp.config import ConfigError; raise ConfigError('no key')")
    monkeypatch.setattr("mrp.monitor.metrics.parts", lambda track: [sound, refusing])
    with pytest.raises(ConfigError, match="no key"):
        Metrics(sound, tmp_path, {}, 0)
    assert module.calls == [("close",)]


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    section, module = own(tmp_path, log="if step > 1: raise OSError('no route to\\nthe server')")
    said = logged(tmp_path, section)
    assert said[0] == (
        f"warning: track: {section.name} fails and is switched off: no route to the server; all is in metrics.jsonl"
    )
    # Of three log points, three pictures and the summary, the first two were shown.
    assert said[1:] == [f"track: {section.name} lacks 5 of 7 log points and pictures"]
    assert module.calls == [("log", 1), ("picture", 1, "images", (2, 3, 3)), ("log", 2)], "then it is left alone"


def test_a_tracker_that_cannot_start_for_want_of_a_disk_is_named_too(tmp_path: Path) -> None:
    section, _ = own(tmp_path, start="raise OSError('read-only file system')")
    said = logged(tmp_path, section)
    assert "fails and is switched off: read-only file system" in said[0]
    assert "lacks 7 of 7" in said[1]


def test_a_wrong_configuration_is_refused_at_the_start(tmp_path: Path) -> None:
    section, _ = own(tmp_path, start="from mrp.config import ConfigError; raise ConfigError('track: give a project')")
    with pytest.raises(ConfigError, match="track: give a project"):
        Metrics(section, tmp_path, {}, 0)


def test_a_tracker_that_hangs_never_slows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_MOST", 5), ("_MOST_PICTURES", 1), ("_PATIENCE", 0.05)):
        monkeypatch.setattr(shown_module, name, value)
    section, module = own(tmp_path, log="hold.wait(300)")
    try:
        said = logged(tmp_path, section, 10, seconds=0.2)
    finally:
        module.hold.set()
    assert said[0].startswith(f"track: {section.name} still holds numbers: the end of the run waits for it until ")
    assert said[1] == f"track: {section.name} lacks 20 of 21 log points and pictures, and did not come to an end"


def test_all_trackers_share_the_time_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section, module = own(tmp_path, log="hold.wait(300)")
    limits: list[float] = []
    monkeypatch.setattr(shown_module.Shown, "wait", lambda self, until: limits.append(until))
    metrics = Metrics(section, tmp_path, {}, 0)
    metrics._trackers *= 2
    try:
        metrics.close(0.1)
    finally:
        module.hold.set()
    assert limits == [limits[0]] * 2


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_that_was_told_to_end_waits_less_for_its_trackers(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []
    close = Metrics.close
    monkeypatch.setattr(Metrics, "close", lambda self, given: close(self, seconds.append(given) or given))
    journal = Journal(none.Config(), tmp_path, {}, start=0, steps=1, batch=1, main=True, say=print, asked=lambda: asked)
    journal.close()
    assert seconds == [shown_module.HURRIED if asked else shown_module.LAST]


def test_a_tracker_that_starts_late_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown_module, "_START", 0.01)
    section, module = own(tmp_path, start="hold.wait(300)")
    said: list[str] = []
    metrics = Metrics(section, tmp_path, {}, 0, said.append)
    metrics.log(1, {"loss": 1.0})
    assert module.calls == []
    module.hold.set()
    metrics.close()
    assert module.calls == [("log", 1), ("close",)]
    assert "has not started after 0 s; training goes on" in said[0]


# TensorBoard


def shown(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_forgets_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    for start, stop in ((0, 3), (0, 6), (4, 8)):  # killed before the first checkpoint, and after that of step 4
        time.sleep(1.01 if (tmp_path / "tensorboard").exists() else 0)  # the files are named after the second
        tracker = Metrics(tensorboard.Config(), tmp_path, {}, start)
        for step in range(start + 1, stop + 1):
            tracker.log(step, {"loss": start + step / 64})
        tracker.close()
    expected = [(step, step / 64) for step in (1, 2, 3, 4)] + [(step, 4 + step / 64) for step in (5, 6, 7, 8)]
    assert shown(tmp_path) == expected
    assert steps(tmp_path) == list(range(1, 9))


# Weights & Biases


@pytest.fixture
def ended() -> Iterator[None]:
    import wandb

    yield
    wandb.teardown()


def pictured(folder: Path, config: Section, start: int, stop: int) -> list[str]:
    """Logs the steps after `start` up to `stop`, each with a picture; returns what was said."""
    said: list[str] = []
    metrics = Metrics(config, folder, {"batch": 8}, start, said.append)
    for step in range(start + 1, stop + 1):
        metrics.log(step, {"loss": 1 / step, "knn/accuracy": step / 10})
        metrics.picture(step, "images", np.full((4, 6, 3), step, np.uint8))
    metrics.close()
    return said


def test_wandb_goes_on_under_one_id_with_its_pictures(tmp_path: Path, ended: None) -> None:
    for start, stop in ((0, 3), (2, 4)):
        time.sleep(1.01 if (tmp_path / "wandb").exists() else 0)  # its folders are named after the second
        assert pictured(tmp_path, wandb_tracker.Config(mode="offline"), start, stop) == []
    name = (tmp_path / "wandb_id.txt").read_text()
    assert len(name) == 8
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [run.name.rpartition("-")[2] for run in runs] == [name, name]
    for run, count in zip(runs, (3, 2), strict=True):
        written = run / f"run-{name}.wandb"  # by wandb's own process, at times after the end that it reports
        for word in (b"loss", b"best/knn/accuracy", b"batch", code_version().encode()):
            until(lambda word=word, written=written: word in written.read_bytes())
        pictures = list((run / "files" / "media" / "images").glob("images_*.png"))
        assert len(pictures) == count
        for picture in pictures:
            with Image.open(picture) as image:
                assert image.size == (6, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def is_now_a_file(folder: Path) -> bool:
    """Puts a file where a folder was; returns False where a tracker's thread has made the folder again meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.write_text("a file where its folder was")
    except IsADirectoryError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_training_goes_on_when_the_trackers_folder_is_lost(name: str, tmp_path: Path, ended: None) -> None:
    said: list[str] = []
    metrics = Metrics(parts(none.Config(also=(name,), mode="offline"))[0], tmp_path, {}, 0, said.append)
    metrics.log(1, {"loss": 1.0})
    until((tmp_path / name).is_dir)
    until(lambda: is_now_a_file(tmp_path / name))
    for step in (2, 3):
        metrics.log(step, {"loss": 1.0})
        metrics.picture(step, "images", np.zeros((4, 6, 3), np.uint8))
    metrics.close()
    assert steps(tmp_path) == [1, 2, 3]
    assert len([line for line in said if "switched off" in line]) <= 1
    # The next start finds the file too, and says so.
    said.clear()
    metrics = Metrics(parts(none.Config(also=(name,), mode="offline"))[0], tmp_path, {}, 3, said.append)
    metrics.log(4, {"loss": 1.0})
    metrics.close()
    assert [f"track: {name} fails and is switched off" in line for line in said] == [True, False]
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_wandb_that_is_not_reached_keeps_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: None
) -> None:
    import wandb

    asked: list[dict[str, Any]] = []
    init = wandb.init

    def unreachable(**options: Any) -> Any:
        asked.append(options)
        if options["mode"] != "offline":
            raise wandb.errors.CommError("no answer\nafter 90 seconds")
        return init(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    assert pictured(tmp_path, wandb_tracker.Config(project="mine"), 0, 1) == []
    assert [options["mode"] for options in asked] == [None, "offline"]  # None: WANDB_MODE decides
    assert asked[0]["project"] == "mine"
    assert asked[0]["name"] == tmp_path.name
    assert asked[0]["config"] == {"batch": 8, "code": code_version()}
    assert "wandb is not reached (no answer after 90 seconds); 'wandb sync' will send" in capsys.readouterr().err
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_wandb_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**options: Any) -> None:
        raise wandb.errors.UsageError("No API key\nconfigured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ConfigError, match=r"^track: wandb does not start: No API key configured; track\.mode=offline"):
        Metrics(wandb_tracker.Config(), tmp_path, {}, 0)


# trackio


def test_trackio_goes_on_under_one_name(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="needs trackio, which is an extra")
    code = (
        "import sys, numpy as np, pathlib\n"
        "from mrp.monitor.metrics import Metrics\n"
        "from mrp.trackers import trackio\n"
        "folder, start = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "metrics = Metrics(trackio.Config(project='mine'), folder, {'batch': 8}, start)\n"
        "for step in (start + 1, start + 2):\n"
        "    metrics.log(step, {'loss': 1 / step, 'norm': float('inf')})\n"
        "    metrics.picture(step, 'images', np.zeros((4, 6, 3), np.uint8))\n"
        "metrics.close()\n"
    )
    (tmp_path / "run").mkdir()
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    for start in ("0", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / "run"), start]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "", "standard output is for results"
    name = (tmp_path / "run" / "trackio_name.txt").read_text()
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "mine.db")) as database:
        found = database.execute("select run_name, step from metrics order by step").fetchall()
    assert set(found) == {(name, step) for step in (1, 2, 3, 4)}
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    ("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")]
)
def test_a_tracker_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"^track: {name} is not installed; 'pip install {name}', or track: none"):
        Metrics(TRACKERS.read(name), tmp_path, {}, 0)
