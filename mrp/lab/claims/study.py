"""Numbers that compare the runs of two methods on the same data: of `tools/small_study.py`, or of our recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.evaluate.results import latest
from mrp.lab.claims.number import Number, Numbers, over_images, over_seeds
from mrp.lab.claims.results import Results, read, refuse_same_run

Accuracy = dict[str, Any]  # accuracy, and low and high of its interval


def diagnosis(results: Results, methods: Sequence[str], numbers: dict[str, dict[str, str]]) -> Numbers:
    """Returns metrics of the last diagnosis: `key` in the runs `of` one method, divided by that of a method `per`."""
    epochs, seeds = results.study(*methods)
    diagnoses = [dict(zip(methods, (read(run / "result.json") for run in runs), strict=True)) for runs in seeds]
    measured = {
        name: over_seeds([_metric(seed, **metric) for seed in diagnoses], _epochs(epochs))
        for name, metric in numbers.items()
        if diagnoses
    }
    return _with_length(measured, epochs)


def probe_gain(results: Results, first: str, second: str) -> Numbers:
    """Returns how many points of accuracy the second method's features gain over the first one's in a probe."""
    epochs, seeds = results.study(first, second)
    gains = {
        f"gain, {title}": _gain([_accuracies(runs, key) for runs in seeds], epochs)
        for title, key in (("linear", "linear"), ("kNN", "knn"))
        if seeds
    }
    return _with_length(gains, epochs)


def tuning_gain(results: Results, first: str, second: str) -> Numbers:
    """Returns the gain after fine-tuning, from what `tools/judge_study.py` has left in the runs' folders."""
    epochs, seeds = results.study(first, second)
    pairs = [pair for before, after in seeds for pair in _tuned(before, after)]
    return _with_length({"gain, fine-tuned": _gain(pairs, epochs)}, epochs) if pairs else {}


def scratch_gain(results: Results, methods: Sequence[str]) -> Numbers:
    """Returns how many points fine-tuning gains over training from scratch for the same steps, from the same tool."""
    gains = {}
    for method in methods:
        epochs, seeds = results.study(method)
        pairs = [(scratch, tuned) for (run,) in seeds for tuned, scratch in _tuned(run, run / "untrained")]
        if pairs:
            gains[f"gain of {method}"] = _gain(pairs, epochs)
    return gains


def _tuned(one: Path, other: Path) -> list[tuple[Accuracy, Accuracy]]:
    """Returns the last fine-tuning of one folder and the same of the other, where both are there."""
    last = sorted(one.glob("judged-*/tuned-*.json"))[-1:]
    return [(read(path), read(found)) for path in last if (found := other / path.relative_to(one)).exists()]


def recipe_gain(results: Results, first: str, second: str) -> Numbers:
    """Returns the gain of one recipe over another, from their runs and what `mrp probe` has left there."""
    runs = (results.folder / first, results.folder / second)
    if not all((run / "probe.json").exists() for run in runs):
        return {}
    refuse_same_run(runs)
    points, half = _points(*_accuracies(runs, "linear"))
    return {"gain, linear": over_images([points], [half], "over test images")}


def _with_length(numbers: Numbers, epochs: int) -> Numbers:
    """Adds the length of training, for claims about long ones."""
    return numbers and numbers | {"epochs": Number(epochs, 0.0, "of pretraining")}


def _metric(diagnoses: dict[str, dict[str, float]], key: str, of: str, per: str = "") -> float:
    return diagnoses[of][key] / diagnoses[per][key] if per else diagnoses[of][key]


def _accuracies(runs: Sequence[Path], key: str) -> tuple[Accuracy, Accuracy]:
    first, second = (latest(run, key) for run in runs)
    return first, second


def _gain(pairs: Sequence[tuple[Accuracy, Accuracy]], epochs: int) -> Number:
    """Returns the mean gain, with the interval over seeds if there are three or more, else over test images."""
    points, halves = zip(*(_points(*pair) for pair in pairs), strict=True)
    if len(pairs) >= 3:
        return over_seeds(points, _epochs(epochs))
    return over_images(points, halves, f"{_epochs(epochs)}, over test images")


def _points(before: Accuracy, after: Accuracy) -> tuple[float, float]:
    """Returns the gain in points, and its half interval as if the images were different, which is cautious."""
    half = 50 * math.hypot(*(accuracy["high"] - accuracy["low"] for accuracy in (before, after)))
    return 100 * float(after["accuracy"] - before["accuracy"]), half


def _epochs(epochs: int) -> str:
    return f"{epochs} epoch{'s' if epochs > 1 else ''}"
