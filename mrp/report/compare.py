"""What has been measured of several runs by probe, judge and validation, as one page."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mrp.config import ConfigError, compose
from mrp.evaluate import copies, measures, results
from mrp.evaluate.interval import wilson
from mrp.evaluate.measures import Measure
from mrp.evaluate.results import Record
from mrp.evaluate.tagged import TITLES
from mrp.evaluators.validation import VALIDATION
from mrp.files import mapping_in
from mrp.folder import CONFIG, recorded
from mrp.interop import runs
from mrp.monitor.metrics import METRICS, each_line
from mrp.report import about, corrupted
from mrp.report.page import Cell, Column, Page, Row, cell_of, short_names

NOT_RECORDED = "not recorded"
_VALIDATED = {"student": "validation", "average": "validation/average"}
_PLACE = ("train", "test", "classes", "fraction", "labels", "group")  # options that say which data a run has


class Named(NamedTuple):
    """Data by name and by content: two sets of one name are told apart by a part of the hash of their content."""

    name: str
    content: str  # empty where it was not recorded

    @classmethod
    def of(cls, data: Mapping[str, Any], content: str | None) -> Named:
        """Names data as a suite does, or by the training and the test set and the part of them that was taken."""
        if data.get("label"):
            return cls(data["label"], content or "")
        given = [_called(data[key]) for key in ("train", "test") if data.get(key)]
        sets = dict.fromkeys("/".join(Path(one).parts[-2:]) for one in given)
        parts = [f"{key} {data[key]}" for key in ("classes", "fraction") if data.get(key)]
        # A record calls them groups, a configuration group.
        parts += ["by groups"] if data.get("groups") or data.get("group") else []
        return cls(", ".join([" > ".join(sets), *parts]) if sets else NOT_RECORDED, content or "")


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a run at one step, on some data."""

    run: str
    step: int
    folder: Path
    data: Named
    cell: Cell
    weights: str = "student"
    copies: int = 0  # of test images that are among the training images

    @property
    def measure(self) -> Measure:
        """Returns what was measured."""
        assert self.cell.measure is not None
        return self.cell.measure


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
        """Returns everything that was measured."""
        every = [*self._validated(), *self._probed(), *self._papers()]
        return [point for point in every if self.step in (None, point.step)]

    def has(self, record: Record) -> bool:
        """Returns whether a record in the folder is about these weights, trained, after the step that was asked for."""
        own = record.backbone == results.TRAINED and record.source == self.source
        return own and self.step in (None, record.step)

    def _probed(self) -> Iterator[Point]:
        """Yields what `mrp probe`, `judge` and `evaluate` have measured, if it has an interval or a direction."""
        corruptions: dict[tuple[str, ...], dict[str, Record]] = {}
        for record in results.read(self.folder):
            if not self.has(record):
                continue
            if group := record.data.get("group"):
                key = group, record.evaluator, str(record.options), record.weights, str(record.step), record.digest
                corruptions.setdefault(key, {})[record.data["label"].removeprefix(f"{group}/")] = record
                continue
            name = self._name(record.weights)
            data = Named.of(record.data, record.data["content"])
            outcomes = results.read_outcomes(self.folder, record)
            for measure in measures.of(record):
                if measure.better:
                    cell = cell_of(measure, outcomes, record.data.get("score") == measures.MEAN_PER_CLASS)
                    count = record.result.get(copies.COPIES, 0)
                    yield Point(name, record.step, self.folder, data, cell, record.weights, count)

        for (group, *_), records in corruptions.items():
            record = next(iter(records.values()))
            contents = "".join(one.data["content"] for one in records.values())
            data = Named(group, hashlib.sha256(contents.encode()).hexdigest()[:16])
            for cell in corrupted.cells(self.folder, records, f"{measures.of(record)[0].title}: ", each=False):
                yield Point(self._name(record.weights), record.step, self.folder, data, cell)

    def _name(self, weights: str) -> str:
        return self.name if weights == "student" else f"{self.name} ({weights})"

    def _papers(self) -> Iterator[Point]:
        """Yields what MAE's linear probe ended with; each is a run, which says on which data and weights."""
        for path in sorted(self.folder.glob(f"paper-*/{VALIDATION}")):
            run = compose(path.parent / CONFIG).values
            weights, step = run["init"]["weights"], int(path.parent.name.split("-")[1])
            title, found = "linear probe (paper)", _student(path)
            of_tags = [
                measures.of_tags("paper", f"{title}: {TITLES[key]}", found, key) for key in TITLES if key in found
            ]
            for measure in of_tags or [Measure("paper", title, *found["accuracy"].values())]:
                yield Point(
                    self._name(weights), step, self.folder, self._data_of(run["data"], path.parent),
                    Cell("", measure), weights,
                )  # fmt: skip

    def _validated(self) -> Iterator[Point]:
        """Yields the accuracies on the test data while the run trained, or how well it told tags.

        The last file says on how many images they were counted.
        """
        path = self.folder / VALIDATION
        images = int(_student(path)["images"]) if path.is_file() else 0
        if not images:
            return
        data, grouped, kept = self._own_data(), bool(self._data().get("group")), mapping_in(path)
        for line in each_line(self.folder / METRICS):
            for weights, prefix in _VALIDATED.items():
                found = []
                if isinstance(accuracy := line.get(f"{prefix}/accuracy"), float | int):
                    value, low, high = wilson(round(float(accuracy) * images), images)
                    bounds = (None, None) if grouped else (low, high)  # the group of each answer is not kept
                    found = [Measure("validation", "test accuracy in training", value, *bounds)]
                last = kept.get(weights, {}) if kept.get("step") == line["step"] else {}
                areas = {key: one for key in TITLES if isinstance(one := line.get(f"{prefix}/{key}"), float | int)}
                found += [
                    measures.of_tags("validation", f"test {TITLES[key]} in training", last | areas, key)
                    for key in areas
                ]
                for one in found:
                    yield Point(self._name(weights), int(line["step"]), self.folder, data, Cell("", one), weights)

    def _own_data(self) -> Named:
        """Returns the run's own data; its evaluators have recorded what their content was.

        Without them, data are the same where training knew the same content and they lie in the same place.
        """
        return Named.of(self._data(), self.content() or self.placed())

    def _data(self) -> dict[str, Any]:
        config = self.folder / CONFIG
        return dict(compose(config).values.get("data", {})) if config.is_file() else {}

    def content(self) -> str:
        """Returns the content of the run's own data; empty where no evaluator has recorded it."""
        contents = [one.data["content"] for one in results.read(self.folder) if one.data.get("own")]
        return str(contents[-1]) if contents else ""

    def placed(self) -> str:
        """Returns a hash of what its folder says of the run's own data."""
        return _placed(self.folder, self._data())

    def _data_of(self, data: Mapping[str, Any], folder: Path) -> Named:
        """Returns the data of a run in this folder: the run's own, or what a record calls the same."""
        own = self._data()
        if _places(data) == _places(own):
            return self._own_data()
        named = Named.of(data, _placed(folder, data))
        alike = [
            one.data
            for one in results.read(self.folder)
            if not one.data.get("label") and _places(one.data | {"group": one.data.get("groups")}) == _places(data)
        ]
        return named._replace(content=alike[-1]["content"]) if alike else named


def _called(source: Any) -> str:
    """Returns the path of a source, or its name where its section has no path."""
    while isinstance(source, Mapping):
        source = source.get("path") or source.get("name")
    return str(source)


def _places(data: Mapping[str, Any]) -> list[Any]:
    return [data.get(key) for key in _PLACE]


def _placed(folder: Path, data: Mapping[str, Any]) -> str:
    said = [recorded(folder, "data.content"), *_places(data)]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()[:16] if data else ""


def collect(paths: Sequence[Path], names: Sequence[str]) -> list[Point]:
    """Returns everything that has been measured of these runs."""
    points: list[Point] = []
    every = [Measured.of(path, name) for path, name in zip(paths, names, strict=True)]
    for path, measured in zip(paths, every, strict=True):
        found = measured.points()
        if not found:
            raise ConfigError(f"{path}: nothing has been measured here yet; 'mrp probe {path}' does")
        points += found
    known = {one.placed(): content for one in every if (content := one.content())}
    return [replace(one, data=Named(one.data.name, known.get(one.data.content, one.data.content))) for one in points]


def page_of(paths: Sequence[Path], names: Sequence[str] | None = None) -> Page:
    """Returns one row per run and step, and one column per measure and data, after those that say what it cost.

    Runs are called by these names, or by as much of their paths as tells them apart.
    """
    points = collect(paths, names or short_names(paths))
    labels = _data_labels(points)
    keys = dict.fromkeys((point.run, point.step, point.folder) for point in points)
    ordered = sorted(keys, key=lambda key: (list(dict.fromkeys(one[0] for one in keys)).index(key[0]), key[1]))
    rows = {key: number for number, key in enumerate(ordered)}
    several = Counter(run for run, _, _ in ordered)
    named = tuple(Row(f"{run}, step {step:,}" if several[run] > 1 else run, run, step) for run, step, _ in ordered)
    # Of several measurements of the same the last one counts.
    found = {(rows[point.run, point.step, point.folder], _place(point, labels)): point for point in points}
    data = list(dict.fromkeys(labels[point.data] for point in points))
    places = sorted(dict.fromkeys(place for _, place in found), key=lambda place: (data.index(place[1]), place[0]))
    steps = {folder: [step for _, step, own in ordered if own == folder] for folder in {one[2] for one in ordered}}
    known = {folder: about.costs(folder, own) for folder, own in steps.items()}
    costs = {row: _costs(step, known[folder].get(step)) for (_, step, folder), row in rows.items()}
    titles = list(dict.fromkeys(title for cost in costs.values() for title in cost))
    columns = [Column("", title, "") for title in titles]
    columns += [Column(name, title, better) for _, name, title, better in places]
    cells = {(row, titles.index(title)): Cell(text) for row, cost in costs.items() for title, text in cost.items()}
    cells |= {(row, len(titles) + places.index(place)): point.cell for (row, place), point in found.items()}
    copied = {labels[point.data]: point.copies for point in points if point.copies}
    notes = tuple(copies.note(label, count) for label, count in copied.items())
    page = Page("accuracy on held-out images", named, tuple(columns), cells, notes)
    weights = {point.run: point.weights for point in points}
    alike = about.same_but_seed([(name, folder, (step, weights[name])) for (name, step, folder) in ordered])
    return page.with_seeds(alike)


def _place(point: Point, labels: Mapping[Named, str]) -> tuple[int, str, str, str]:
    """Returns the column that a value belongs into; its first number orders the measures."""
    kind, one = point.measure.name.partition("/")[0], point.measure
    return measures.rank(kind), labels[point.data], one.title, one.better


def _data_labels(points: Sequence[Point]) -> dict[Named, str]:
    """Returns what to call the data of some points: one name for one content, and no two sets are called the same."""
    names: dict[str, str] = {}
    for point in points:
        if point.data.content:
            names[point.data.content] = min(names.get(point.data.content, point.data.name), point.data.name, key=len)
    called = {data: names.get(data.content, data.name) for data in {point.data for point in points}}
    several = Counter(name for name, _ in {(called[data], data.content) for data in called})
    return {data: f"{name} #{data.content[:6]}" if several[name] > 1 else name for data, name in called.items()}


def _costs(step: int, cost: about.Cost | None) -> dict[str, str]:
    """Returns what a row says beside its results."""
    known = {"step": f"{step:,}"}
    if cost is not None and step:
        known |= {"images seen": f"{cost.images:,}", "training FLOPs": f"{cost.bound}{cost.flops:.2g}"}
        known |= {} if cost.hours is None else {"hours": f"{cost.hours:.2g}"}
    return known


def _student(path: Path) -> dict[str, Any]:
    try:
        student: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["student"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not what validation writes ({error!r}); remove it") from None
    return student
