"""Suites: YAML files that list what `mrp judge` measures on which data; reading and checking one loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from mrp import outside
from mrp.config import ConfigError, Node, build, nearest, parse_by_line, reading
from mrp.config.tree import Origins
from mrp.data.config import SourceName
from mrp.data.labels import Labels
from mrp.evaluate.classes import BY_INDEX, BY_NAME
from mrp.evaluators import EVALUATORS
from mrp.suites import corruptions

_OF_DATA = {"train", "classes", "fraction", "labels", "group", "size"}  # options of a data set that `data:` has too
_PLACE = re.compile(r"\{(\w+)\}")


class TestSet(Node):
    """One of several test sets on which a head that was learned once is counted."""

    short: ClassVar[type | None] = str
    path: SourceName
    classes: str = BY_NAME  # which training class a test class is: by_name, by_index, or a file
    limited: bool = False  # whether answers are limited to the classes of this test set
    corruptions: bool = False  # whether it is a folder like ImageNet-C, each of whose corruptions is a test set


class DataSet(Node):
    """Training data and the test data of one or of several kinds."""

    train: SourceName | None = None  # null: nothing is learned, classifiers answer as they are
    test: SourceName | None = None
    tests: dict[str, TestSet] = Field(default={})
    classes: str | None = None  # only these: a file with one name per line, or a list that comes with mrp
    fraction: float | None = Field(None, gt=0, le=1)  # of the training samples of each class
    labels: Labels | None = None  # a table with the labels of train and test, as data.labels
    group: str | None = None  # what images that belong together share in their names, as data.group
    size: int | tuple[int, int] | None = None  # the size of the images that the backbone sees; null: as in its training
    score: Literal["accuracy", "mean_per_class"] = "accuracy"  # mean_per_class: each class has the same weight

    @field_validator("tests", mode="before")
    @classmethod
    def _accept_paths(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"path": test} if isinstance(test, str) else test for name, test in value.items()}


class Measurement(Node):
    """An evaluator with its options, and the data sets on which it measures."""

    evaluator: str
    data: str | tuple[str, ...]
    options: dict[str, Any] = Field(default={})
    title: str | None = None  # above its column, where its own name does not say enough

    @property
    def sets(self) -> tuple[str, ...]:
        """Returns the names of the data sets."""
        return (self.data,) if isinstance(self.data, str) else self.data


class _Suite(Node):
    places: dict[str, str] = Field(default={})  # what the command line fills in, and what each is
    data: dict[str, DataSet]
    measure: tuple[Measurement, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Test:
    """A test set whose places have been filled."""

    name: str  # empty where the data set has only this one
    words: str | dict[str, Any]
    classes: str = BY_NAME
    limited: bool = False


@dataclass(frozen=True)
class Data:
    """A data set whose places have been filled; test sets whose places were not given are left out."""

    name: str
    train: dict[str, Any]  # options of `data:`
    tests: tuple[Test, ...]
    score: str = "accuracy"

    @property
    def of_classifiers(self) -> bool:
        """Returns whether nothing is learned, so that only classifiers can be measured."""
        return "train" not in self.train


@dataclass(frozen=True, eq=False)
class Task:
    """One evaluator on one test set of one data set."""

    evaluator: str
    options: dict[str, Any]
    data: str
    test: str
    title: str
    origins: Origins  # of the options: file and line
    missing: tuple[str, ...] = ()  # the places that were not given: then there is nothing to measure
    group: str = ""  # the name of the corrupted test set that this is one corruption of

    @property
    def label(self) -> str:
        """Returns what its data are called."""
        return "/".join(name for name in (self.data, self.test) if name)

    @property
    def group_label(self) -> str:
        """Returns what the corrupted test set is called that this is one corruption of."""
        return "/".join(name for name in (self.data, self.group) if name)


@dataclass(frozen=True)
class Plan:
    """What is to be measured, in the order of the suite, and on what."""

    suite: str
    data: dict[str, Data]
    tasks: tuple[Task, ...]


class Suite:
    """A suite that has been read and checked, apart from the options of its evaluators, which these check."""

    def __init__(self, name: str, path: Path, config: _Suite, origins: Origins) -> None:
        self.name, self.path, self._config, self._origins = name, path, config, origins
        self._check()

    @property
    def places(self) -> dict[str, str]:
        """Returns what the command line may give, and what each is."""
        return self._config.places

    def plan(self, places: Mapping[str, str]) -> Plan:
        """Returns what can be measured where these places are given, and what cannot."""
        for place in places:
            if place not in self.places:
                known = f"it has {', '.join(self.places)}" if self.places else "it has none"
                raise ConfigError(
                    f"{place}=: suite '{self.name}' has no place of this name"
                    f"{nearest(place, self.places) or f'; {known}'}"
                )
        data, tasks = dict[str, Data](), list[Task]()
        tests: dict[str, dict[str, list[Test]]] = {}  # of each data set; those whose places are given
        for name, config in self._config.data.items():
            of_data = config.model_dump(mode="json", include=_OF_DATA)
            given = {test: one for test, one in _test_sets(config).items() if {*_places(one)} <= places.keys()}
            tests[name] = {test: self._filled(test, one, places) for test, one in given.items()}
            every = tuple(one for found in tests[name].values() for one in found)
            words = {key: value for key, value in of_data.items() if value is not None}
            data[name] = Data(name, _filled(words, places), every, config.score)
        for number, measurement in enumerate(self._config.measure):
            for name in measurement.sets:
                config = self._config.data[name]
                options = _filled(measurement.options, places)
                needed = _places([config.train, config.classes, measurement.options])
                for test, described in _test_sets(config).items():
                    missing = [place for place in (*needed, *_places(described)) if place not in places]
                    about = measurement.title or "", self._options_at(number), tuple(dict.fromkeys(missing))
                    found = [test] if missing else [one.name for one in tests[name][test]]
                    group = test if described["corruptions"] else ""
                    tasks += [Task(measurement.evaluator, options, name, one, *about, group) for one in found]
        return Plan(self.name, data, tuple(tasks))

    def _options_at(self, number: int) -> Origins:
        """Returns where each option of a measurement stands."""
        prefix = f"measure.{number}.options."
        lines = {key.removeprefix(prefix): line for key, line in self._origins.items() if key.startswith(prefix)}
        return {"": self._where(f"measure.{number}")} | lines

    def _filled(self, name: str, described: Mapping[str, Any], places: Mapping[str, str]) -> list[Test]:
        """Returns a test set, or each of the corrupted ones in a folder."""
        filled = _filled(described, places)
        how = filled["classes"]
        beside = self.path.parent / how
        if how not in (BY_NAME, BY_INDEX) and beside.is_file():
            how = str(beside)
        return tests_of(name, filled["path"], how, filled["limited"], filled["corruptions"])

    def _check(self) -> None:
        for key, value in _texts(self._config.model_dump(mode="json", include={"data", "measure"})):
            for place in _places(value):
                if place not in self.places:
                    known = nearest(place, self.places) or "; add it to places: with a word on what it is"
                    raise ConfigError(f"{self._where(key)}: {key}: there is no place '{place}'{known}")
        for name, config in self._config.data.items():
            if (config.test is None) == (not config.tests):
                raise ConfigError(f"{self._where(f'data.{name}')}: data.{name}: give either test or tests")
        seen = set()
        for number, one in enumerate(self._config.measure):
            key = f"measure.{number}"
            if not one.evaluator.endswith(outside.SUFFIX) and one.evaluator not in EVALUATORS.names():
                hint = nearest(one.evaluator, EVALUATORS.names()) or f"; known: {', '.join(EVALUATORS.names())}"
                raise ConfigError(f"{self._where(f'{key}.evaluator')}: unknown evaluator '{one.evaluator}'{hint}")
            for name in one.sets:
                if name not in self._config.data:
                    hint = nearest(name, self._config.data) or f"; it has {', '.join(self._config.data)}"
                    raise ConfigError(f"{self._where(f'{key}.data')}: this suite has no data set '{name}'{hint}")
                same = one.evaluator, name, repr(sorted(one.options.items()))
                if same in seen:
                    raise ConfigError(f"{self._where(key)}: {one.evaluator} on {name} stands twice; remove one")
                seen.add(same)

    def _where(self, key: str) -> str:
        while key and key not in self._origins:
            key = key.rpartition(".")[0]
        return self._origins.get(key, str(self.path))


def tests_of(name: str, path: Any, classes: str, limited: bool, corrupted: bool) -> list[Test]:
    """Returns a test set, or each of the corrupted ones in a folder, as `NAME/fog/3`."""
    if not corrupted:
        return [Test(name, path, classes, limited)]
    found = corruptions.find(Path(path).expanduser())
    return [Test(f"{name}/{each}", str(folder), classes, limited) for each, folder in found.items()]


def names() -> list[str]:
    """Returns the suites that come with mrp."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def read(name: str | Path) -> Suite:
    """Returns a suite by the path of its file, or one of ours by its name."""
    path = Path(name)
    if not path.is_file():
        path = Path(__file__).parent / f"{path.name.removesuffix('.yaml')}.yaml"
        if not path.is_file() or Path(name).parent.name:
            raise ConfigError(
                f"--suite: {name} is neither a file nor a suite that comes with mrp{nearest(str(name), names())}"
                f"; these are {', '.join(names())}"
            )
    with reading(path, f"give a suite, or one of {', '.join(names())}"):
        text = path.read_text(encoding="utf-8")
    tree = parse_by_line(text, str(path))
    return Suite(path.stem, path, build(_Suite, tree), tree.origins)


def _test_sets(config: DataSet) -> dict[str, dict[str, Any]]:
    """Returns the test sets as plain data; a single one has no name."""
    tests = config.tests or {"": TestSet(path=config.test or "")}
    return {name: test.model_dump(mode="json") for name, test in tests.items()}


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    """Returns plain data in which every place that is given stands as the text that was given for it."""
    if isinstance(value, Mapping):
        return {key: _filled(one, places) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(one, places) for one in value]
    if isinstance(value, str):
        return _PLACE.sub(lambda match: places.get(match[1], match[0]), value)
    return value


def _places(value: Any) -> list[str]:
    """Returns the places that plain data name."""
    value = value.model_dump(mode="json") if isinstance(value, Node) else value
    return [place for _, text in _texts(value) for place in _PLACE.findall(text)]


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields every text in plain data with its dotted path."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if isinstance(value, str):
        yield path, value
    for key, part in parts:
        yield from _texts(part.model_dump(mode="json") if isinstance(part, Node) else part, f"{path}.{key}".lstrip("."))
