"""What was measured of several runs, with intervals, as rows of a table and as one picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from mrp.config import ConfigError, compose
from mrp.evaluate import results
from mrp.evaluate.interval import wilson
from mrp.evaluators.validation import VALIDATION
from mrp.folder import CONFIG
from mrp.interop import runs
from mrp.monitor.metrics import METRICS, read_lines

MEASURES = {
    "linear": "linear probe (sweep)",
    "paper": "linear probe (paper)",
    "knn": "kNN (k = 20)",
    "few_shot": "10 images per class",
    "validation": "test accuracy in training",
}
COLOURS = ("#1f5f8b", "#c4622d", "#3f7d4e", "#7a4f8f", "#8a6d1f", "#4b4b4b", "#b03060", "#2a8c8c")
NOT_RECORDED = "not recorded"
_SHOTS = 10
_ACCURACY = "validation/accuracy"


class Named(NamedTuple):
    """Data by name and by content: two sets of one name are told apart by a part of the hash of their content."""

    name: str
    content: str  # empty where it was not recorded

    @classmethod
    def of(cls, data: Mapping[str, Any], content: str | None) -> Named:
        """Names the training and the test set, and the part of them that was taken."""
        sets = dict.fromkeys("/".join(Path(str(data[key])).parts[-2:]) for key in ("train", "test") if data.get(key))
        parts = [f"{key} {data[key]}" for key in ("classes", "fraction") if data.get(key)]
        return cls(", ".join([" > ".join(sets), *parts]) if sets else NOT_RECORDED, content or "")


@dataclass(frozen=True, slots=True)
class Point:
    """The value of one measure for one run at one step, on some data."""

    run: str
    step: int
    data: Named
    measure: str
    accuracy: float
    low: float
    high: float

    @property
    def row(self) -> tuple[str, Named, int]:
        """Returns what stands in one row of the table: values on different data never do."""
        return self.run, self.data, self.step


@dataclass(frozen=True, slots=True)
class Measured:
    """Where the results of a run, of one of its checkpoints or of imported weights are kept."""

    name: str
    folder: Path
    step: int | None = None  # only the results of this one
    source: str = ""  # only those of these imported weights

    @classmethod
    def of(cls, path: Path, name: str) -> Measured:
        """Finds the results of what a path holds."""
        if (path / METRICS).is_file() or any(path.glob("probe*.json")):
            return cls(name, path)
        if runs.is_ours(path):
            folder, checkpoint = runs.locate(path)
            return cls(name, folder, None if folder == path else checkpoint.step)
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file or folder; give a run, a checkpoint or imported weights")
        return cls(name, results.folder_of_import(path), source=str(path.absolute()))

    def points(self) -> list[Point]:
        """Returns everything that was measured; of several measurements of the same the last one counts."""
        every = [*self._validated(), *self._probed(), *self._papers()]
        points = {(*point.row, point.measure): point for point in every if self.step in (None, point.step)}
        return [points[key] for key in sorted(points)]

    def _probed(self) -> Iterator[Point]:
        """Yields what `mrp probe` has measured with evaluators as they are without options."""
        for record in results.read(self.folder):
            if record.backbone != results.TRAINED or record.options or record.source != self.source:
                continue
            result = record.result
            if record.evaluator == "few_shot":
                result = next((one for one in result["few_shot"] if one["shots"] == _SHOTS), {})
            if record.evaluator in MEASURES and "accuracy" in result:
                name = self.name if record.weights == "student" else f"{self.name} ({record.weights})"
                interval = result["accuracy"], result["low"], result["high"]
                yield Point(
                    name, record.step, Named.of(record.data, record.data["content"]), record.evaluator, *interval
                )

    def _papers(self) -> Iterator[Point]:
        for path in sorted(self.folder.glob(f"paper-*/{VALIDATION}")):
            interval = _student(path)["accuracy"].values()
            yield Point(self.name, int(path.parent.name.split("-")[1]), self._own_data(), "paper", *interval)

    def _validated(self) -> Iterator[Point]:
        """Yields the accuracy on the test data while the run trained; the last file says on how many images."""
        path = self.folder / VALIDATION
        images = int(_student(path)["images"]) if path.is_file() else 0
        for line in read_lines(self.folder / METRICS) if images else ():
            if isinstance(line.get(_ACCURACY), float | int):
                interval = wilson(round(float(line[_ACCURACY]) * images), images)
                yield Point(self.name, int(line["step"]), self._own_data(), "validation", *interval)

    def _own_data(self) -> Named:
        """Returns the run's own data; its evaluators have recorded what their content was."""
        contents = [one.data["content"] for one in results.read(self.folder) if one.data.get("own")]
        config = self.folder / CONFIG
        data = compose(config).values["data"] if config.is_file() else {}
        return Named.of(data, contents[-1] if contents else None)


def collect(paths: Sequence[Path]) -> list[Point]:
    """Returns everything that has been measured of these runs, in their order and then by data and step."""
    points: list[Point] = []
    for path, name in zip(paths, _names(paths), strict=True):
        measured = Measured.of(path, name).points()
        if not measured:
            raise ConfigError(f"{path}: nothing has been measured here yet; 'mrp probe {path}' does")
        points += measured
    return points


def data_labels(points: Sequence[Point]) -> dict[Named, str]:
    """Returns what to call the data of some points, so that no two sets are called the same."""
    named = sorted({point.data for point in points})
    several = Counter(data.name for data in named)
    return {data: f"{data.name} #{data.content[:6]}" if several[data.name] > 1 else data.name for data in named}


def picture(points: Sequence[Point], path: Path) -> None:
    """Draws one panel per measure: over steps where a run was measured at several, else with one row per run."""
    measures = [measure for measure in MEASURES if any(point.measure == measure for point in points)]
    labels = data_labels(points)
    several = len(labels) > 1
    lines = {point.row: f"{point.run}\non {labels[point.data]}" if several else point.run for point in points}
    names = list(dict.fromkeys(lines.values()))
    longest = max(len(line) for name in names for line in name.splitlines())
    size = 4.2 * len(measures) + 0.07 * longest, max(3.2, 1.6 + (0.6 if several else 0.36) * len(names))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, measure in zip(panels, measures, strict=True):
        by_name: dict[str, list[Point]] = {name: [] for name in names}
        for point in points:
            if point.measure == measure:
                by_name[lines[point.row]].append(point)
        if any(len(line) > 1 for line in by_name.values()):
            _draw_over_steps(panel, by_name)
        else:
            _draw_rows(panel, by_name, labelled=panel is panels[0])
        panel.set_title(MEASURES[measure], fontsize=10, loc="left")
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _draw_over_steps(panel: Any, by_name: Mapping[str, list[Point]]) -> None:
    for (name, points), colour in zip(by_name.items(), cycle(COLOURS), strict=False):
        if points:
            points = sorted(points, key=lambda point: point.step)
            steps, values, errors = [point.step for point in points], *_bars(points)
            panel.errorbar(steps, values, errors, color=colour, marker="o", markersize=4, capsize=2, label=name)
    panel.set(xlabel="step", ylabel="accuracy, %")
    panel.legend(frameon=False, fontsize=8)


def _draw_rows(panel: Any, by_name: Mapping[str, list[Point]], labelled: bool) -> None:
    for row, (points, colour) in enumerate(zip(by_name.values(), cycle(COLOURS), strict=False)):
        if points:
            values, errors = _bars(points)
            panel.errorbar(values, [row], xerr=errors, color=colour, marker="o", markersize=6, capsize=3)
            label = f"{values[0]:.1f}"
            panel.annotate(label, (values[0], row), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    panel.set_yticks(range(len(by_name)), by_name if labelled else [""] * len(by_name))
    panel.set_ylim(len(by_name) - 0.4, -0.6)
    panel.margins(x=0.15)
    panel.set_xlabel("accuracy, %")


def _bars(points: Sequence[Point]) -> tuple[list[float], list[list[float]]]:
    """Returns accuracies in percent, and how far their intervals reach down and up."""
    values = [100 * point.accuracy for point in points]
    below = [100 * (point.accuracy - point.low) for point in points]
    above = [100 * (point.high - point.accuracy) for point in points]
    return values, [below, above]


def _student(path: Path) -> dict[str, Any]:
    try:
        student: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["student"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not what validation writes ({error!r}); remove it") from None
    return student


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the last parts of the paths, as many as it takes to tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ConfigError("the same run is given twice; give each once")
    count = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(one[-count:]) for one in parts]
