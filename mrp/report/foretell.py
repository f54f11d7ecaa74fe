"""How well numbers without labels foretell accuracies: their rank correlation over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.config import ConfigError
from mrp.evaluate import measures, results
from mrp.evaluate.interval import Interval
from mrp.evaluate.schedule import SECONDS
from mrp.evaluate.statistics import spearman
from mrp.monitor.metrics import METRICS, each_line
from mrp.report.compare import Measured
from mrp.report.page import short_names

LABEL_FREE = "geometry"
FEWEST = 4  # steps, with which an interval can be given


@dataclass(frozen=True)
class Foretold:
    """The rank correlation of a number without labels with what labels measured, after the same steps."""

    run: str
    number: str
    measure: str
    correlation: Interval
    steps: int


def correlations(paths: Sequence[Path]) -> list[Foretold]:
    """Returns the correlations within each run, for each number and measure that were taken after enough steps."""
    found = [
        one for path, name in zip(paths, short_names(paths), strict=True) for one in _within(Measured.of(path, name))
    ]
    if not found:
        raise ConfigError(
            f"--foretell: needs '{LABEL_FREE}' and an accuracy after the same {FEWEST} steps of a run; measure them "
            f"while it trains (evaluate: {{{LABEL_FREE}: {{every: 5 epochs}}, knn: {{every: 5 epochs}}}}) or later"
        )
    return found


def _within(measured: Measured) -> Iterator[Foretold]:
    numbers, accuracies = dict[str, dict[int, float]](), dict[str, dict[int, float]]()
    for is_number, name, step, value in (*_in_training(measured), *_after_it(measured)):
        (numbers if is_number else accuracies).setdefault(name, {})[step] = value
    for number, before in numbers.items():
        for measure, after in accuracies.items():
            steps = sorted(before.keys() & after.keys())
            if len(steps) >= FEWEST:
                pair = [before[step] for step in steps], [after[step] for step in steps]
                yield Foretold(measured.name, number, measure, spearman(*pair), len(steps))


Value = tuple[bool, str, int, float]  # whether it is a number without labels, what it is called, its step, and itself


def _in_training(measured: Measured) -> Iterator[Value]:
    """Yields what evaluators have measured of the weights that were trained, while they were."""
    for line in each_line(measured.folder / METRICS) if not measured.source else ():
        for name, value in line.items():
            evaluator, _, what = name.partition("/")
            if isinstance(value, float | int) and math.isfinite(value):
                if evaluator == LABEL_FREE and what != SECONDS and "/" not in what:
                    yield True, what, line["step"], value
                elif what == "accuracy":
                    yield False, f"{evaluator} in training", line["step"], value


def _after_it(measured: Measured) -> Iterator[Value]:
    """Yields what `mrp probe` and `mrp judge` have measured; on other data or of other weights it has another name."""
    for record in results.read(measured.folder):
        own, is_number = record.data.get("own"), record.evaluator == LABEL_FREE
        if record.backbone != results.TRAINED or record.source != measured.source:
            continue
        which = "" if record.weights == "student" else f" ({record.weights})"
        which += "" if own else f" on {record.data.get('label') or record.data.get('test')}"
        for one in measures.of(record):
            name = one.name.partition("/")[2] if is_number else one.title
            if math.isfinite(one.value) and (is_number or (one.share and one.better == "higher")):
                yield is_number, name + which, record.step, one.value
