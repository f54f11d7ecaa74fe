"""What a run's folder says of its course: curves, what happened at which step, and what was measured."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mrp.config import compose
from mrp.evaluate.interval import wilson
from mrp.evaluators.validation import VALIDATION
from mrp.files import mapping_in
from mrp.folder import CONFIG, ENVIRONMENT
from mrp.monitor.incident import FILE as INCIDENT
from mrp.monitor.incident import INCIDENTS
from mrp.monitor.metrics import METRICS, each_line
from mrp.report.series import Floats, Marks, Series

_ACCURACY, _SECONDS = "accuracy", "/seconds"  # how the names of metrics end


@dataclass(frozen=True)
class History:
    """A run until now, or until one of its checkpoints."""

    name: str
    folder: Path
    until: float = math.inf  # the step

    @cached_property
    def columns(self) -> dict[str, tuple[Floats, Floats]]:
        """The log points: of each metric the steps at which it was logged, and its values.

        What is not finite stands in the file as text. A run of a million steps has too many lines to keep them all.
        """
        found: dict[str, tuple[array[float], array[float]]] = {}
        for line in each_line(self.folder / METRICS):
            for key, value in line.items() if line["step"] <= self.until else ():
                if isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
                    steps, values = found.get(key) or found.setdefault(key, (array("d"), array("d")))
                    steps.append(line["step"])
                    values.append(float(value))
        return {key: (np.array(steps), np.array(values)) for key, (steps, values) in found.items()}

    @cached_property
    def values(self) -> dict[str, Any]:
        """The configuration; empty for imported weights."""
        path = self.folder / CONFIG
        return compose(path).values if path.is_file() else {}

    def section(self, name: str) -> Mapping[str, Any]:
        """Returns a section of the configuration; empty where it is missing, or a file changed by hand has no such."""
        return _mapping(self.values.get(name))

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """What each start of the run ran on; one that found a complete run had nothing to do, and is left out.

        So is one from behind the checkpoint, or from the checkpoint itself.
        """
        starts = mapping_in(self.folder / ENVIRONMENT).get("starts", [])
        each = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
        for one, following in itertools.pairwise(each):  # what has changed at a start that is left out
            if one.get("step") is not None and one["step"] == one.get("steps"):
                following["changed"] = {**_mapping(one.get("changed")), **_mapping(following.get("changed"))}
        each = each[:1] + [one for one in each[1:] if one.get("step") is None or one["step"] != one.get("steps")]
        each = [one for one in each if not isinstance(step := one.get("step"), int) or step < self.until]
        return [start | {key: _mapping(start.get(key)) for key in ("packages", "changed")} for start in each]

    @property
    def resumes(self) -> list[int]:
        """The steps that the run went on from; without a checkpoint it began anew."""
        return [step for start in self.starts[1:] if isinstance(step := start.get("step"), int) and step]

    @cached_property
    def incidents(self) -> list[dict[str, Any]]:
        """The steps that were not finite, in their order."""
        found = (mapping_in(path) for path in sorted((self.folder / INCIDENTS).glob(f"*/{INCIDENT}")))
        return [one for one in found if isinstance(step := one.get("step"), int) and step <= self.until]

    @cached_property
    def alarms(self) -> list[int]:
        """The steps at which `diagnose` saw a collapse."""
        folders = sorted((self.folder / "alarms").glob("step-*"))
        steps = [int(name) for one in folders if (name := one.name.removeprefix("step-")).isdecimal()]
        return [step for step in steps if step <= self.until]

    @cached_property
    def quarantined(self) -> int:
        """The number of samples that turned out to be no images."""
        path = self.folder / "quarantine.jsonl"
        return len(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else 0

    @property
    def step(self) -> int:
        """The last log point."""
        return int(self.columns["step"][0][-1]) if self.columns else 0

    def curve(self, key: str, name: str = "") -> Series | None:
        """Returns a metric over steps; None where it was never logged."""
        return Series(name or key, *self.columns[key]) if key in self.columns else None

    @cached_property
    def marks(self) -> Marks:
        """What happened at which step."""
        evaluated = set[float]().union(*(self._steps_of(key) for key in self.columns if key.endswith(_SECONDS)))
        return Marks(
            resumes=sorted({*self.resumes}),
            incidents=[one["step"] for one in self.incidents],
            spikes=[int(step) for step in self._steps_of("spike")],
            evaluations=sorted(map(int, evaluated)),
        )

    def _steps_of(self, key: str) -> list[float]:
        steps: list[float] = self.columns[key][0].tolist() if key in self.columns else []
        return steps

    def accuracies(self) -> Iterator[Series]:
        """Yields the accuracy that each evaluator measured while the run trained.

        On how many images they were counted, and so their intervals, is known from the last result on.
        """
        for key in self.columns:
            if not key.endswith(f"/{_ACCURACY}"):
                continue
            evaluator, *weights, _ = key.split("/")
            series = Series(" ".join([evaluator, *(f"({one})" for one in weights)]), *self.columns[key])
            yield _with_intervals(series, self._counted(evaluator, weights[0] if weights else ""))

    def _counted(self, evaluator: str, weights: str) -> int:
        if self.section("data").get("group"):
            return 0  # images of a group are not independent, and which are right is not kept for each step
        one = self._last(evaluator, weights)
        count = one.get("num_test", one.get("images", 0))
        return count if isinstance(count, int) else 0

    def _last(self, evaluator: str, weights: str) -> dict[str, Any]:
        """Returns the last measurement of these weights, or else of the others, and its step."""
        found = mapping_in(self.folder / (VALIDATION if evaluator == "validation" else f"evaluations/{evaluator}.json"))
        several = (one for one in (found.get(weights), *found.values()) if isinstance(one, Mapping) and one)
        return next(({"step": found.get("step"), **one} for one in several), {})

    def measured(self, evaluator: str) -> dict[str, Any]:
        """Returns what an evaluator measured last while the run trained; empty where it did not, or later."""
        found = self._last(evaluator, "average")
        return found if self.until == math.inf or found.get("step") == self.until else {}

    def classes(self) -> dict[str, Any]:
        """Returns the last validation's classes and confusion; empty where the run is no classifier."""
        one = self.measured("validation")
        try:
            shape = np.asarray(one["confusion"], np.int64).shape
            return one if shape == 2 * (len([each["name"] for each in one["classes"]]),) else {}
        except (KeyError, TypeError, ValueError, OverflowError):
            return {}


def _with_intervals(series: Series, images: int) -> Series:
    if not images:
        return series
    bounds = [wilson(round(min(1.0, max(0.0, value)) * images), images) for value in series.y.tolist()]
    low, high = (np.array([getattr(one, side) for one in bounds]) for side in ("low", "high"))
    return Series(series.name, series.x, series.y, low, high)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
