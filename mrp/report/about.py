"""What a run was beside its results: what it cost, and which runs differ from it in their seed alone."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from mrp.build import measure_cost
from mrp.config import ConfigError, compose
from mrp.folder import CONFIG
from mrp.monitor.metrics import METRICS, each_line
from mrp.run import NOT_IN_IDENTITY, load


class Cost(NamedTuple):
    """What training until a step took; None for what is not known."""

    images: int
    flops: float
    bound: str  # what is said before them
    hours: float | None


def costs(folder: Path, steps: Collection[int]) -> dict[int, Cost]:
    """Returns the cost of a run until each of some steps; none where the folder is not a run's."""
    if not (folder / CONFIG).is_file():
        return {}
    try:
        run = load(folder / CONFIG)
        cost = measure_cost(run)  # per image
    except ConfigError:  # a file of the run's own that is gone
        return {}
    hours = _hours(folder, steps, run.batch)
    return {
        step: Cost(step * run.batch, float(step * run.batch) * cost.training_flops, cost.bound, hours.get(step))
        for step in steps
    }


def _hours(folder: Path, steps: Collection[int], batch: int) -> dict[int, float]:
    """Returns the time until each step at the speed that was logged, without evaluations and pauses.

    The log is gone through once for all steps: of a long run it is long, and so may the list of steps be.
    """
    at, seconds, speeds = [0], [0.0], [0.0]
    for line in each_line(folder / METRICS):
        logged = line.get("images_per_second")
        if isinstance(logged, int | float) and logged > 0 and line["step"] > at[-1]:
            seconds.append(seconds[-1] + (line["step"] - at[-1]) * batch / logged)
            at.append(line["step"])
            speeds.append(logged)
    before = {step: bisect_right(at, step) - 1 for step in steps}
    return {step: (seconds[i] + (step - at[i]) * batch / speeds[i]) / 3600 for step, i in before.items() if i > 0}


def same_but_seed(runs: Sequence[tuple[str, Path, object]]) -> dict[str, list[int]]:
    """Returns the numbers of the runs that differ in their seed alone, two or more of them, by the name of the first.

    A run is given as its name, its folder, and what else has to be the same, such as the step.
    """
    alike: dict[str, list[int]] = {}
    seeds: dict[str, set[object]] = {}
    files = {folder / CONFIG for _, folder, _ in runs}
    configured = {file.parent: compose(file).values for file in files if file.is_file()}
    for number, (_, folder, other) in enumerate(runs):
        if (values := configured.get(folder)) is None:
            continue
        kept = {key: value for key, value in values.items() if key not in {*NOT_IN_IDENTITY, "seed"}}
        key = json.dumps([kept, str(other)], sort_keys=True, default=str)
        if values.get("seed") not in seeds.setdefault(key, set()):
            seeds[key].add(values.get("seed"))
            alike.setdefault(key, []).append(number)
    return {runs[numbers[0]][0]: numbers for numbers in alike.values() if len(numbers) > 1}
