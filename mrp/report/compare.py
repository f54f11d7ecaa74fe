"""Several runs side by side: what was measured of each, with intervals, as rows and as one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mrp.config import ConfigError
from mrp.evaluate import results
from mrp.evaluate.interval import wilson
from mrp.evaluators.validation import VALIDATION
from mrp.monitor.metrics import METRICS, read_lines

MEASURES = {
    "linear": "linear probe (sweep)",
    "paper": "linear probe (paper)",
    "knn": "kNN (k = 20)",
    "few_shot": "10 images a class",
    "validation": "test accuracy in training",
}
COLOURS = ("#1f5f8b", "#c4622d", "#3f7d4e", "#7a4f8f", "#8a6d1f", "#4b4b4b", "#b03060", "#2a8c8c")
_SHOTS = 10
_ACCURACY = "validation/accuracy"


@dataclass(frozen=True, slots=True)
class Point:
    """What one measure says of one run at one step."""

    run: str
    step: int
    measure: str
    accuracy: float
    low: float
    high: float


def collect(folders: Sequence[Path]) -> list[Point]:
    """Everything that has been measured of these runs, in their order and then by step."""
    names = _names(folders)
    found: list[Point] = []
    for folder, name in zip(folders, names, strict=True):
        points = {(point.measure, point.step): point for point in [*_validated(folder, name), *_probed(folder, name)]}
        if not points:
            raise ConfigError(f"{folder}: nothing has been measured here yet; 'mrp probe {folder}' does")
        found += [points[key] for key in sorted(points)]
    return found


def last(points: Sequence[Point], run: str, measure: str) -> Point | None:
    """The newest of a run."""
    own = [point for point in points if (point.run, point.measure) == (run, measure)]
    return max(own, key=lambda point: point.step, default=None)


def picture(points: Sequence[Point], path: Path) -> None:
    """A panel for each measure: over steps where some run has several, else a row for each run."""
    measures = [measure for measure in MEASURES if any(point.measure == measure for point in points)]
    runs = list(dict.fromkeys(point.run for point in points))
    height = 1.6 + 0.36 * len(runs)
    figure = Figure(figsize=(4.2 * len(measures), max(3.2, height)), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        own = [point for point in points if point.measure == measure]
        steps = {run: [point for point in own if point.run == run] for run in runs}
        if any(len(found) > 1 for found in steps.values()):
            _over_steps(panel, runs, steps)
        else:
            _rows(panel, runs, steps, labelled=panel is panels[0])
        panel.set_title(MEASURES[measure], fontsize=10, loc="left")
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _over_steps(panel: Any, runs: Sequence[str], found: dict[str, list[Point]]) -> None:
    for run, colour in zip(runs, _colours(runs), strict=True):
        points = sorted(found[run], key=lambda point: point.step)
        if points:
            steps, values, errors = [point.step for point in points], *_bars(points)
            panel.errorbar(steps, values, errors, color=colour, marker="o", markersize=4, capsize=2, label=run)
    panel.set(xlabel="step", ylabel="accuracy, %")
    panel.legend(frameon=False, fontsize=8)


def _rows(panel: Any, runs: Sequence[str], found: dict[str, list[Point]], labelled: bool) -> None:
    for place, (run, colour) in enumerate(zip(runs, _colours(runs), strict=True)):
        if points := found[run]:
            values, errors = _bars(points)
            panel.errorbar(values, [place], xerr=errors, color=colour, marker="o", markersize=6, capsize=3)
            label = f"{values[0]:.1f}"
            panel.annotate(label, (values[0], place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    panel.set_yticks(range(len(runs)), runs if labelled else [""] * len(runs))
    panel.set_ylim(len(runs) - 0.4, -0.6)
    panel.margins(x=0.15)
    panel.set_xlabel("accuracy, %")


def _bars(points: Sequence[Point]) -> tuple[list[float], list[list[float]]]:
    """Accuracies in percent, and how far their intervals reach down and up."""
    values = [100 * point.accuracy for point in points]
    below = [100 * (point.accuracy - point.low) for point in points]
    above = [100 * (point.high - point.accuracy) for point in points]
    return values, [below, above]


def _colours(runs: Sequence[str]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(runs))]


def _probed(folder: Path, name: str) -> list[Point]:
    """What `mrp probe` has found: of the newest checkpoint, and of each that was asked for by its step."""
    found = []
    for record in results.read(folder):
        if record.backbone != results.TRAINED:
            continue
        label = name if record.weights == "student" else f"{name} ({record.weights})"
        result = record.result
        if record.evaluator == "few_shot":
            result = next((one for one in result["few_shot"] if one["shots"] == _SHOTS), {})
        if record.evaluator in MEASURES and "accuracy" in result:
            interval = result["accuracy"], result["low"], result["high"]
            found.append(Point(label, record.step, record.evaluator, *interval))
    for path in sorted(folder.glob(f"paper-*/{VALIDATION}")):
        found += [Point(name, int(path.parent.name.split("-")[1]), "paper", *_verdict(path)["accuracy"].values())]
    return found


def _validated(folder: Path, name: str) -> list[Point]:
    """The accuracy on the test data while the run trained; the last verdict says on how many images."""
    path = folder / VALIDATION
    if not path.is_file():
        return []
    images = int(_verdict(path)["images"])
    lines = [line for line in read_lines(folder / METRICS) if isinstance(line.get(_ACCURACY), float | int)]
    shares = [(int(line["step"]), float(line[_ACCURACY])) for line in lines]
    return [Point(name, step, "validation", *wilson(round(share * images), images)) for step, share in shares]


def _verdict(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["student"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not what validation writes ({error!r}); remove it") from None
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes to tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ConfigError("the same run is given twice; give each once")
    count = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(one[-count:]) for one in parts]
