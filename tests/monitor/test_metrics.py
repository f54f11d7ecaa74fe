"""Numbers of a run: every step once and in order, however often the run was killed, wherever they are shown."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mrp.config import ConfigError
from mrp.monitor.metrics import METRICS, Metrics, cut
from mrp.trackers import TRACKERS, Section, none, tensorboard
from mrp.trackers import wandb as wandb_tracker


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
def test_what_is_no_line_of_ours_is_dropped(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / METRICS
    path.write_bytes(b'{"step": 1}\n' + noise + b'{"step": 2}\n')
    cut(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


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


class Broken:
    """A tracker whose server is gone, or whose disk is full, from the second value on."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls += 1
        if step > 1:
            raise OSError("no route to\nthe server")

    def close(self) -> None:
        self.calls += 1


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    metrics, broken = Metrics(none.Config(), tmp_path, {}, 0, said.append), Broken()
    metrics._tracker = broken
    for step in (1, 2, 3):
        metrics.log(step, {"loss": 1.0})
    metrics.close()
    assert steps(tmp_path) == [1, 2, 3], "the file of the run is complete"
    assert broken.calls == 2, "after its failure it is left alone"
    assert said == [
        f"warning: track: none fails and is switched off: no route to the server; all numbers are in "
        f"{tmp_path / METRICS}"
    ]


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


def test_wandb_goes_on_under_one_id(tmp_path: Path) -> None:
    import wandb

    try:
        for start, stop in ((0, 3), (2, 4)):
            time.sleep(1.01 if (tmp_path / "wandb").exists() else 0)  # its folders are named after the second
            record(tmp_path, wandb_tracker.Config(mode="offline"), start, stop)
    finally:
        wandb.teardown()
    name = (tmp_path / "wandb_id.txt").read_text()
    assert len(name) == 8
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [run.name.rpartition("-")[2] for run in runs] == [name, name]
    for run in runs:
        assert b"loss" in (run / f"run-{name}.wandb").read_bytes()
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_wandb_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    asked: dict[str, Any] = {}

    def init(**options: Any) -> None:
        asked.update(options)
        raise wandb.errors.CommError("no answer\nafter 90 seconds")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^track: wandb does not start: no answer after.*track\.mode=offline"):
        Metrics(wandb_tracker.Config(project="mine"), Path(), {"batch": 8}, 0)
    assert asked["project"] == "mine"
    assert asked["name"] == tmp_path.name
    assert asked["config"] == {"batch": 8}
    assert asked["mode"] is None  # WANDB_MODE decides


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"^track: {name} is not installed; 'pip install {name}', or track: none"):
        Metrics(TRACKERS.read(name), tmp_path, {}, 0)
