"""What every evaluator must do, tried on a model of two steps on digits."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mrp import api
from mrp.check.outcome import Failed
from mrp.config import as_words
from mrp.evaluate import results
from mrp.evaluators import short_name
from mrp.monitor.metrics import METRICS, read_lines

_TINY = [
    "demo", "length=2 steps", "optim.warmup=1 steps", "backbone.depth=2", "backbone.width=24", "backbone.heads=2",
    "objective.decoder.depth=1", "diagnose.every=null", "machine.workers=0",
]  # fmt: skip
_DIGITS = 2 / 360  # two of the test images: sums over processes round differently, and a neighbour may change


class Trial:
    """An evaluator on a run, made once for all checks."""

    def __init__(self, file: str, options: dict[str, Any], folder: Path) -> None:
        self.file = file
        self.name = short_name(file)
        self.options = options
        self.run = folder / "run"

    @cached_property
    def trained(self) -> Path:
        """The folder of a run that was measured in each of its steps."""
        evaluate = {self.file: {"every": "1 steps", **self.options}}
        return api.pretrain(*_TINY, folder=self.run, evaluate=evaluate)

    @cached_property
    def alone(self) -> dict[str, Any]:
        """What one process measures after the run."""
        return api.probe(self.trained, *self.words, evaluators=[self.file]).results[results.TRAINED][self.name]

    @property
    def words(self) -> Sequence[str]:
        """The evaluator's options as words of the command line."""
        return as_words({self.name: self.options}) if self.options else []


def it_measures_inside_training(trial: Trial) -> None:
    """Inside training it logs finite numbers after every step that it is due at."""
    for line in read_lines(trial.trained / METRICS):
        values = {key: value for key, value in line.items() if key.startswith(f"{trial.name}/")}
        measured = {key: value for key, value in values.items() if not key.endswith("/seconds")}
        if not measured:
            raise Failed(f"step {line['step']} has no value of it", "return Result({'name': number})")
        odd = [key for key, value in measured.items() if not isinstance(value, int | float) or not math.isfinite(value)]
        if odd:
            raise Failed(f"{odd[0]} is {measured[odd[0]]}", "return finite numbers as the values of a Result")


def it_measures_after_training(trial: Trial) -> None:
    """After training it measures, and its details are plain data."""
    if not trial.alone:
        raise Failed("it measured nothing", "return Result(values, details) where the process is the first one")
    try:
        json.dumps(trial.alone)
    except (TypeError, ValueError) as error:
        raise Failed(f"its details are no plain data: {error}", "take numbers, texts, lists and dictionaries") from None


def it_measures_the_same_again(trial: Trial) -> None:
    """Measured a second time the numbers are the same."""
    again = api.probe(trial.trained, *trial.words, evaluators=[trial.file]).results[results.TRAINED][trial.name]
    _compare(trial.alone, again, "the second time", 1e-9, "seed what it draws at random, and start counts anew")


def two_processes_measure_the_same(trial: Trial) -> None:
    """Two processes measure what one measures."""
    expected = trial.alone
    words = ["probe", str(trial.trained), "--evaluator", trial.file, *trial.words, "--processes", "2"]
    done = subprocess.run([sys.executable, "-m", "mrp", *words], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(
            f"two processes end with: {last}",
            "have all processes call the same; only the first one gets tables",
        )
    (found,) = [each.result for each in results.read(trial.trained) if each.evaluator == trial.name]
    _compare(expected, found, "on two processes", _DIGITS, "add up over the processes (setting.processes.reduce)")


def _compare(ours: Any, theirs: Any, when: str, tolerance: float, remedy: str) -> None:
    found = dict(_numbers(theirs))
    for name, value in _numbers(ours):
        other = found.get(name, math.nan)
        if not math.isclose(value, other, rel_tol=max(tolerance, 1e-6), abs_tol=tolerance):
            raise Failed(f"{name} is {value:.6g}, and {when} {other:.6g}", remedy)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers in some plain data, without what was measured of time."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key != "seconds":
                yield from _numbers(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


CHECKS = (
    it_measures_inside_training, it_measures_after_training, it_measures_the_same_again, two_processes_measure_the_same,
)  # fmt: skip
