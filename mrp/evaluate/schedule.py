"""What the training loop sees of evaluation: whether an evaluator is due, and what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from mrp import progress
from mrp.evaluate.contract import Evaluator, Pause, Result, Setting, checked
from mrp.evaluate.gathering import left_as_it_was
from mrp.evaluate.readout import objective_of
from mrp.files import write_atomically
from mrp.monitor.metrics import INTERRUPTED
from mrp.optim.average import Average
from mrp.processes.signals import Interrupted

SECONDS = "seconds"  # what a measurement took; features that several evaluators read count for the first of them


@dataclass(frozen=True)
class Scheduled:
    """An evaluator and its interval in steps."""

    name: str
    evaluator: Evaluator
    every: int


class Evaluators:
    """Runs each evaluator on its schedule and after the last step, on the weights and on their moving average."""

    def __init__(self, evaluators: list[Scheduled], setting: Setting, average: Average | None) -> None:
        assert setting.training is not None
        self._evaluators = evaluators
        self._steps = setting.training.steps
        self._setting = setting
        self._average = average

    def due(self, step: int) -> bool:
        """Returns whether anything is to be measured after this step."""
        return bool(self._due(step))

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Returns everything that is due after a step; `pause` leaves it unfinished by raising Interrupted."""
        values, details, alarm, stop = dict[str, float](), dict[str, dict[str, Any]](), None, False
        pictures: dict[str, Any] = {}
        try:
            for weights, use in self._weights(model):
                with use, self._setting.tables.of(None), progress.hidden():  # the run has a line of its own
                    for scheduled in self._due(step):
                        evaluator = scheduled.evaluator
                        if weights == "average" and not evaluator.of_average:
                            continue
                        begin = time.perf_counter()
                        with left_as_it_was(model):
                            result = checked(evaluator.measure(model, step, pause), scheduled.name)
                        seconds = time.perf_counter() - begin
                        label = evaluator.label or scheduled.name
                        prefix = label if weights != "average" else f"{label}/{weights}"
                        named = result.values | {SECONDS: seconds}
                        values |= {f"{prefix}/{name}": value for name, value in named.items()}
                        pictures |= {f"{prefix}/{name}": one for name, one in result.pictures.items()}
                        file = evaluator.file or f"evaluations/{scheduled.name}.json"
                        details.setdefault(file, {"step": step})[weights] = result.details
                        alarm, stop = alarm or result.alarm, stop or (result.alarm is not None and result.stop)
        except Interrupted:
            return Result({INTERRUPTED: 1.0})
        if step == self._steps and self._setting.processes.is_main_process:
            self._write(details)
        return Result(values, details, alarm, stop, pictures=pictures)

    def _due(self, step: int) -> list[Scheduled]:
        return [part for part in self._evaluators if step == self._steps or step % part.every == 0]

    def _weights(self, model: nn.Module) -> Iterator[tuple[str, AbstractContextManager[None]]]:
        """Yields the weights that are judged, as the method says, and their name; then the average of the student's."""
        yield objective_of(model).judged, nullcontext()
        if self._average is not None:
            yield "average", _averaged(model, self._average)

    def _write(self, details: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes the last measurement of each evaluator in full."""
        for file, content in details.items():
            if any(content[weights] for weights in content.keys() - {"step"}):
                path = self._setting.folder / file
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, json.dumps(content))


@contextmanager
def _averaged(model: nn.Module, average: Average) -> Iterator[None]:
    """Has the student judged inside the block, with its averaged weights."""
    objective = objective_of(model)
    judged = objective.judged
    with average.in_place():
        objective.judged = "student"
        try:
            yield
        finally:
            objective.judged = judged
