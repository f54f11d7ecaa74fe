"""What a run's folder says of its course: curves, what happened at which step, and what was measured."""

from __future__ import annotations

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
from mrp.monitor.metrics import INTERRUPTED, METRICS, read_lines
from mrp.report.series import Marks, Series

_ACCURACY = "accuracy"


@dataclass(frozen=True)
class History:
    """A run until now."""

    name: str
    folder: Path

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The log points, in the order of steps."""
        return read_lines(self.folder / METRICS)

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
        """What each start of the run ran on."""
        starts = mapping_in(self.folder / ENVIRONMENT).get("starts", [])
        each = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
        return [start | {key: _mapping(start.get(key)) for key in ("packages", "changed")} for start in each]

    @cached_property
    def incidents(self) -> list[dict[str, Any]]:
        """The steps that were not finite, in their order."""
        found = (mapping_in(path) for path in sorted((self.folder / INCIDENTS).glob(f"*/{INCIDENT}")))
        return [one for one in found if isinstance(one.get("step"), int)]

    @cached_property
    def alarms(self) -> list[int]:
        """The steps at which `diagnose` saw a collapse."""
        folders = sorted((self.folder / "alarms").glob("step-*"))
        return [int(one.name.removeprefix("step-")) for one in folders if one.name.removeprefix("step-").isdecimal()]

    @cached_property
    def quarantined(self) -> int:
        """The number of samples that turned out to be no images."""
        path = self.folder / "quarantine.jsonl"
        return len(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else 0

    @property
    def step(self) -> int:
        """The last log point."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    def curve(self, key: str, name: str = "") -> Series | None:
        """Returns a metric over steps; None where it was never logged. What is not finite stands there as text."""
        points = [(line["step"], float(line[key])) for line in self.lines if _is_number(line.get(key))]
        return Series.of(name or key, *zip(*points, strict=True)) if points else None

    @cached_property
    def marks(self) -> Marks:
        """What happened at which step."""
        evaluated = [
            line["step"] for line in self.lines
            if any(name.endswith("/seconds") and not name.startswith("checkpoint") for name in line)
            and INTERRUPTED not in line
        ]  # fmt: skip
        resumes = {step for start in self.starts[1:] if isinstance(step := start.get("step"), int)}
        return Marks(
            resumes=sorted(resumes - {0}),
            incidents=[one["step"] for one in self.incidents],
            spikes=[line["step"] for line in self.lines if "spike" in line],
            evaluations=evaluated,
        )

    def accuracies(self) -> Iterator[Series]:
        """Yields the accuracy that each evaluator measured while the run trained.

        On how many images they were counted, and so their intervals, is known from the last result on.
        """
        keys = dict.fromkeys(name for line in self.lines for name in line if name.endswith(f"/{_ACCURACY}"))
        for key in keys:
            evaluator, *weights, _ = key.split("/")
            series = self.curve(key, " ".join([evaluator, *(f"({one})" for one in weights)]))
            if series is not None:
                yield _with_intervals(series, self._counted(evaluator, weights[0] if weights else ""))

    def _counted(self, evaluator: str, weights: str) -> int:
        file = VALIDATION if evaluator == "validation" else f"evaluations/{evaluator}.json"
        results = mapping_in(self.folder / file)
        one = results.get(weights) or next((value for value in results.values() if isinstance(value, Mapping)), {})
        count = one.get("num_test", one.get("images", 0))
        return count if isinstance(count, int) else 0

    def classes(self) -> dict[str, Any]:
        """Returns the last validation's classes and confusion; empty where the run is no classifier."""
        found = mapping_in(self.folder / VALIDATION)
        one = found.get("average") or next((value for value in found.values() if isinstance(value, Mapping)), {})
        try:
            shape = np.asarray(one["confusion"], np.int64).shape
            return dict(one) if shape == 2 * (len([each["name"] for each in one["classes"]]),) else {}
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("nan", "inf", "-inf")
