"""What a run was beside its results: what it cost, and which runs differ from it in their seed alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mrp.build import measure_cost
from mrp.config import ConfigError, compose
from mrp.folder import CONFIG
from mrp.monitor.metrics import METRICS, read_lines
from mrp.run import NOT_IN_IDENTITY, Run, load


class Cost(NamedTuple):
    """What training until a step took; None for what is not known."""

    images: int
    flops: float
    hours: float | None


@cache
def cost(folder: Path, step: int) -> Cost | None:
    """Returns the cost of a run until a step; None where the folder is not a run's."""
    if not (folder / CONFIG).is_file():
        return None
    try:
        run = load(folder / CONFIG)
        flops = _flops(run)
    except ConfigError:  # a file of the run's own that is gone
        return None
    return Cost(step * run.batch, float(step * run.batch) * flops, _hours(folder, step, run.batch))


def _flops(run: Run) -> int:
    """Returns the operations of training on one image."""
    return measure_cost(run).training_flops


def _hours(folder: Path, step: int, batch: int) -> float | None:
    """Returns the time that the steps took at the speed that was logged, without evaluations and pauses."""
    seconds, before, speed = 0.0, 0, 0.0
    for line in read_lines(folder / METRICS):
        logged = line.get("images_per_second")
        if isinstance(logged, int | float) and logged > 0 and before < line["step"] <= step:
            seconds += (line["step"] - before) * batch / logged
            before, speed = line["step"], logged
    return (seconds + (step - before) * batch / speed) / 3600 if speed else None


def same_but_seed(runs: Sequence[tuple[str, Path, object]]) -> dict[str, list[int]]:
    """Returns the numbers of the runs that differ in their seed alone, two or more of them, by the name of the first.

    A run is given as its name, its folder, and what else has to be the same, such as the step.
    """
    alike: dict[str, list[int]] = {}
    seeds: dict[str, set[object]] = {}
    for number, (_, folder, other) in enumerate(runs):
        if not (folder / CONFIG).is_file():
            continue
        values = compose(folder / CONFIG).values
        kept = {key: value for key, value in values.items() if key not in {*NOT_IN_IDENTITY, "seed"}}
        key = json.dumps([kept, str(other)], sort_keys=True, default=str)
        if values.get("seed") not in seeds.setdefault(key, set()):
            seeds[key].add(values.get("seed"))
            alike.setdefault(key, []).append(number)
    return {runs[numbers[0]][0]: numbers for numbers in alike.values() if len(numbers) > 1}
