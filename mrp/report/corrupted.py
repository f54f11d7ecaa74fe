"""What the results under each corruption of a test set come to: the mean error, and the mean corruption error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrp.data.order import Ints
from mrp.evaluate import measures, results, statistics
from mrp.evaluate.results import Record
from mrp.report.page import Cell
from mrp.suites.corruptions import ALEXNET_ERRORS, SEVERITIES


@dataclass(frozen=True)
class _Errors:
    """Errors under each corruption and severity, `fog/3`; and of each image, where all are of the same images."""

    of: Mapping[str, float]
    images: Mapping[str, statistics.Scores] | None
    groups: Ints | None = None

    @classmethod
    def read(cls, folder: Path, records: Mapping[str, Record]) -> _Errors:
        answers = {name: results.read_outcomes(folder, record) for name, record in records.items()}
        errors = {name: 1 - _share(record.result["accuracy"]) for name, record in records.items()}
        found = [one for one in answers.values() if one is not None]
        if len(found) < len(answers) or any(not np.array_equal(found[0].classes, one.classes) for one in found):
            return cls(errors, None)
        images = {name: 1 - one.right.astype(np.float64) for name, one in answers.items() if one is not None}
        return cls(errors, images, found[0].groups)

    def mean(self, weights: Mapping[str, float], title: str) -> Cell:
        """Returns the sum of the errors under these weights."""
        value = sum(weight * self.of[name] for name, weight in weights.items())
        about: dict[str, Any] = {"name": title, "title": title, "better": "lower"}
        if self.images is None:
            return Cell("", measures.Measure(value=value, **about))
        scores = np.sum([weight * self.images[name] for name, weight in weights.items()], axis=0)
        _, low, high = statistics.mean_of(scores, self.groups)
        measure = measures.Measure(value=value, low=max(0.0, low), high=high, **about)
        return Cell("", measure, scores=scores, groups=self.groups)


def cells(folder: Path, records: Mapping[str, Record], prefix: str, each: bool) -> Iterator[Cell]:
    """Yields the mean error of a test set's corruptions and, of all fifteen official ones, the mean corruption error.

    `records` are those of each corruption and severity, `fog/3`; a corruption without all severities is passed over.
    Titles begin with `prefix`. With `each`, the mean errors of each corruption follow.
    """
    every = dict.fromkeys(name.partition("/")[0] for name in records)
    named = [name for name in every if all(f"{name}/{severity}" in records for severity in SEVERITIES)]
    if not named or any("accuracy" not in record.result for record in records.values()):
        return
    errors = _Errors.read(folder, records)
    official = [name for name in named if name in ALEXNET_ERRORS]

    def weights(names: list[str], divided: bool = False) -> dict[str, float]:
        return {
            f"{name}/{severity}": 1 / (len(names) * len(SEVERITIES) * (ALEXNET_ERRORS[name] if divided else 1))
            for name in names
            for severity in SEVERITIES
        }

    if len(official) == len(ALEXNET_ERRORS):
        yield errors.mean(weights(official, divided=True), f"{prefix}mean corruption error (mCE)")
    yield errors.mean(weights(named), f"{prefix}mean error, {len(named)} corruptions")
    if each:
        yield from (errors.mean(weights([name]), f"{prefix}error, {name}") for name in named)


def _share(accuracy: Any) -> float:
    return float(accuracy["accuracy"] if isinstance(accuracy, Mapping) else accuracy)
