"""The schedule: what is due, on which weights, under which names, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from torch import nn

from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.evaluate import contract
from mrp.evaluate.contract import Pause, Result, Training, never
from mrp.evaluate.schedule import Evaluators, Scheduled
from mrp.monitor.metrics import INTERRUPTED
from mrp.processes.signals import Interrupted
from mrp.run import load
from tests.evaluators.settings import Alone, setting


class Fixed(contract.Evaluator):
    """Measures the scale of a layer."""

    def __init__(self, config: Any, setting: Any, alarm: str | None = None) -> None:
        self.alarm = alarm

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        pause()
        scale = float(model.scale)  # type: ignore[arg-type]
        return Result({"scale": scale}, {"step": step, "scale": scale}, self.alarm, stop=True)


class Watching(Fixed):
    label = "watched"
    file = "watched.json"
    of_average = False


class Average:
    """Has the model use twice its scale."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @contextmanager
    def in_place(self) -> Iterator[None]:
        self.model.scale *= 2  # type: ignore[operator]
        yield
        self.model.scale /= 2  # type: ignore[operator]


@pytest.fixture
def model() -> nn.Module:
    layer = nn.Identity()
    layer.scale = 3.0  # type: ignore[assignment]
    layer.objective = SimpleNamespace(judged="student")  # type: ignore[assignment]
    return layer


def evaluators(folder: Path, average: Any = None, main: bool = True, alarm: str | None = None) -> Evaluators:
    digits = open_source("digits", "test")
    training = Training(steps=10, warmup=1, steps_per_epoch=5.0, batch=4)
    at = setting(load("demo").data, digits, digits, Alone(0 if main else 1), folder=folder, training=training)
    parts = [Scheduled("fixed", Fixed(None, at, alarm), 3), Scheduled("watching", Watching(None, at), 4)]
    return Evaluators(parts, at, average)


def test_each_is_due_at_its_own_steps_and_at_the_end(tmp_path: Path, model: nn.Module) -> None:
    schedule = evaluators(tmp_path)
    assert [step for step in range(1, 11) if schedule.due(step)] == [3, 4, 6, 8, 9, 10]
    assert schedule.measure(model, 3, never).values == {"fixed/scale": 3.0, "fixed/seconds": ANY}
    assert schedule.measure(model, 4, never).values == {"watched/scale": 3.0, "watched/seconds": ANY}
    assert not list(tmp_path.glob("*.json"))


def test_the_average_is_measured_where_it_counts_and_the_end_is_written(tmp_path: Path, model: nn.Module) -> None:
    result = evaluators(tmp_path, Average(model)).measure(model, 10, never)
    scales = {name: value for name, value in result.values.items() if name.endswith("scale")}
    assert scales == {"fixed/scale": 3.0, "watched/scale": 3.0, "fixed/average/scale": 6.0}
    assert model.scale == 3.0
    last = json.loads((tmp_path / "evaluations" / "fixed.json").read_text())
    assert last == {"step": 10, "student": {"step": 10, "scale": 3.0}, "average": {"step": 10, "scale": 6.0}}
    assert "average" not in json.loads((tmp_path / "watched.json").read_text())


def test_what_each_measurement_took_is_among_its_values(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((5.0, 7.0, 10.0, 10.5, 20.0, 21.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    values = evaluators(tmp_path, Average(model)).measure(model, 10, never).values
    taken = {name: value for name, value in values.items() if name.endswith("/seconds")}
    assert taken == {"fixed/seconds": 2.0, "watched/seconds": 0.5, "fixed/average/seconds": 1.0}


def test_another_process_writes_nothing(tmp_path: Path, model: nn.Module) -> None:
    assert evaluators(tmp_path, main=False).measure(model, 10, never).values
    assert not list(tmp_path.rglob("*.json"))


def test_an_alarm_is_handed_on(tmp_path: Path, model: nn.Module) -> None:
    result = evaluators(tmp_path, alarm="collapsed").measure(model, 10, never)
    assert (result.alarm, result.stop) == ("collapsed", True)
    assert not evaluators(tmp_path).measure(model, 10, never).stop  # without an alarm there is nothing to stop for


def test_an_interruption_leaves_a_note_and_nothing_else(tmp_path: Path, model: nn.Module) -> None:
    def pause() -> None:
        raise Interrupted

    result = evaluators(tmp_path, Average(model)).measure(model, 10, pause)
    assert result == Result({INTERRUPTED: 1.0})
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"scale": 1.0}, "evaluator fixed: measure returns a dict; return contract.Result"),
        (None, "evaluator fixed: measure returns a NoneType"),
        (Result({"scale": "high"}), "evaluator fixed: its values are no numbers by name: could not convert string"),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_result_is_named(
    found: Any, message: str, tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fixed, "measure", lambda *given: found)
    with pytest.raises(ConfigError, match=message):
        evaluators(tmp_path).measure(model, 3, never)


def test_numbers_of_numpy_and_torch_are_numbers(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = Result({"one": np.float32(1), "two": torch.tensor(2.0), "three": 3})
    monkeypatch.setattr(Fixed, "measure", lambda *given: found)
    values = evaluators(tmp_path).measure(model, 3, never).values
    assert json.loads(json.dumps(values)) == {"fixed/one": 1, "fixed/two": 2, "fixed/three": 3, "fixed/seconds": ANY}
