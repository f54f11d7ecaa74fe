"""Judging weights by a suite: what is missing is measured, each result is kept at once, and all are handed back.

Whatever interrupts it, the same call goes on where it stopped and ends with the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrp.apart import apart
from mrp.build import build_step, open_source
from mrp.config import ConfigError, Tree, build
from mrp.data.labels import refuse_same_rows
from mrp.data.source import Named, Source
from mrp.data.subset import class_list
from mrp.evaluate import measures, results
from mrp.evaluate.answering import classes_told_apart, learns_tags
from mrp.evaluate.classes import BY_NAME, called_otherwise, of_test_sets
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Setting, checked, never
from mrp.evaluate.interval import in_percent
from mrp.evaluate.results import TRAINED, UNTRAINED, Record
from mrp.evaluate.tables import weights_digest
from mrp.evaluators import EVALUATORS, make
from mrp.interop.config import WeightsName
from mrp.model import Model, class_names, load
from mrp.probing import Subject, changed, changed_run, results_folder, setting_of, tables_of
from mrp.processes.join import from_first
from mrp.suites import Data, Plan, Task, read
from mrp.suites.given import plan_of

Words = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Judged:
    """One set of weights, and its record for each task of the plan that could be measured."""

    path: Path
    subject: Subject
    folder: Path  # of its results
    records: Mapping[Task, Record]
    notes: tuple[str, ...] = ()  # what was left out, and what its classes are called by


def plan_of_suite(suite: str | Path, places: Mapping[str, str]) -> Plan:
    """Returns what a suite asks for; `places` says where its data are."""
    chosen = read(suite)
    plan = chosen.plan(places)
    if all(task.missing for task in plan.tasks):
        needed = ", ".join(f"{place}=PATH ({what})" for place, what in chosen.places.items())
        raise ConfigError(f"--suite {plan.suite}: it is not said where any of its data are; give {needed}")
    return plan


def plan_of_tests(
    tests: Sequence[str], real: str | None, changes: Words, path: str | Path, weights: WeightsName | None
) -> tuple[Plan, Words]:
    """Returns what classifiers are measured on, and what else is changed for it.

    `tests` are such as `v2=PATH,by_index`, and `real` is the file of ReaL labels of the first of them. Without any, and
    without `data.test` among the changes, it is the test data of the run at the path.
    """
    data = dict(changes.get("data", {}))
    if odd := data.keys() & {"train", "fraction"}:
        raise ConfigError(f"data.{min(odd)}: nothing is learned, so there is no training data; leave it out")
    if not tests and data.get("test") is None:
        first = load(path, weights)
        own = first.run.data.model_dump(mode="json")
        if first.source or own["test"] is None:
            raise ConfigError(f"{path}: has no test data of its own; give data.test=PATH or --test NAME=PATH")
        data = {key: own[key] for key in ("classes", "labels", "group")} | data | {"test": own["test"]}
    return plan_of(tests, data.pop("test", None), real), {**changes, "data": data}


@apart()
def carry_out(
    plan: Plan,
    paths: Sequence[str | Path],
    weights: WeightsName | None = None,
    untrained: bool = False,
    again: bool = False,
    changes: Words | None = None,
    cache: str | Path | None = None,
    head: str | Path | None = None,
    say: Callable[[str], object] = print,
) -> list[Judged]:
    """Measures what a plan asks for and has not been measured yet; of several processes the first gets the results.

    `untrained` judges the untrained backbones too, `again` measures everything once more, `changes` are sections such
    as `machine`, `cache` is the folder that keeps the features, and `head` a file with the names of a classifier's
    classes.
    """
    if len({Path(path).absolute() for path in paths}) < len(paths):
        raise ConfigError("the same weights are given twice; give each once")
    section_of = {task: _section(task) for task in plan.tasks if not task.missing}
    by_data = {name: [task for task in plan.tasks if task.data == name and not task.missing] for name in plan.data}
    classifiers_alone = all(plan.data[name].of_classifiers for name, tasks in by_data.items() if tasks)
    changes = changes or {}
    judged, opened, seen = list[Judged](), dict[str, _Opened](), set[str]()
    for path in paths:
        loaded = load(path, weights)
        if classifiers_alone and not _is_classifier(loaded, TRAINED):
            raise ConfigError(
                f"{path}: is no classifier, as it has no trained head; fine-tune it with 'mrp finetune', or judge its "
                "features with 'mrp probe'"
            )
        folder = results_folder(path, loaded)
        for backbone in (TRAINED, UNTRAINED) if untrained else (TRAINED,):
            if backbone == UNTRAINED:
                loaded = replace(loaded, module=build_step(loaded.run).eval())
                features = weights_digest(loaded.module)
                if features in seen:
                    continue  # the untrained backbone of an earlier run is the same
                seen.add(features)
            subject = Subject.of(path, loaded, backbone)
            judging, records = _Judging(loaded, subject, folder, again, say), dict[Task, Record]()
            notes: dict[str, None] = {}
            for name, tasks in by_data.items():
                if tasks and plan.data[name].of_classifiers and not _is_classifier(loaded, backbone):
                    notes[f"No classifier, so it is left out of {name}."] = None
                elif tasks:
                    opened[name] = opened.get(name) or _Opened.of(plan.data[name], loaded, changes)
                    named, origin = opened[name].named(loaded, head)
                    notes |= {origin: None} if origin else {}
                    model, settings = opened[name].settings(loaded, named, folder, cache)
                    sections = {task: section_of[task] for task in tasks}
                    records |= judging.measure(sections, opened[name].data, model, settings)
            judged.append(Judged(Path(path), subject, folder, records, tuple(notes)))
    return judged


def _is_classifier(model: Model, backbone: str) -> bool:
    """Returns whether a model has a head that was trained."""
    return bool(classes_told_apart(model.module)) and backbone == TRAINED and "head.weight" not in model.missing


@dataclass(frozen=True)
class _Opened:
    """A data set of a suite, open: its training data, and each of its test sets."""

    data: Data
    train: Source | None  # None where nothing is learned
    tests: Mapping[str, Source]
    changes: Words  # of the machine

    @classmethod
    def of(cls, data: Data, model: Model, changes: Words) -> _Opened:
        """Opens the data, which are the same for every model."""
        try:
            runs = {test.name: changed_run(model, _words(data, test.words, changes)) for test in data.tests}
            tests = {name: open_source(run, "test") for name, run in runs.items()}
            train = None if data.of_classifiers else open_source(next(iter(runs.values())), "train")
            if data.score != measures.ACCURACY and train is not None and train.tags:
                raise ConfigError(f"score: {data.score} is of classes, and the data have tags; leave it out")
            refuse_same_rows((f"the test data {name}".strip(), source) for name, source in tests.items())
            return cls(data, train, tests, changes)
        except ConfigError as error:
            raise ConfigError(f"data set '{data.name}' of the suite: {error}" if data.name else str(error)) from None

    def named(self, model: Model, head: str | Path | None) -> tuple[Source, str]:
        """Returns the training data, or names of a classifier's classes in their place and a line on their origin."""
        if self.train is not None:
            return self.train, ""
        count, of_tags = classes_told_apart(model.module), learns_tags(model.module)
        what = "tags" if of_tags else "classes"
        if head is not None:
            names, origin = class_list(str(head)), str(head)
            if len(names) != count:
                raise ConfigError(f"{head}: names {len(names)} {what}, but {model.folder} tells {count} apart")
        else:
            tests = {test.name: (self.tests[test.name].classes, test.classes) for test in self.data.tests}
            names, origin = class_names(model), f"as {model.folder} has them" if model.source else ""
            if not names or (model.source and not of_tags and called_otherwise(names, tests)):
                names, origin = of_test_sets(count, tests, of_tags)
        return Named(names), f"Names of the {count:,} {what}: {origin}." if origin else ""

    def settings(
        self, model: Model, train: Source, folder: Path, cache: str | Path | None
    ) -> tuple[Model, dict[str, Setting]]:
        """Returns the model as it is evaluated, and the setting of each test set; the feature tables are shared."""
        first = self.data.tests[0]
        model = changed(model, _words(self.data, first.words, self.changes))
        shared = setting_of(model, folder, cache, opened=(train, self.tests[first.name]))
        settings = {}
        for test in self.data.tests:
            data = changed_run(model, _words(self.data, test.words, self.changes)).data
            source = self.tests[test.name]
            settings[test.name] = replace(shared, data=data, test=source, classes=test.classes, limited=test.limited)
        return model, settings


@dataclass(frozen=True)
class _Judging:
    """One set of weights that is being judged."""

    loaded: Model
    subject: Subject
    folder: Path
    again: bool
    say: Callable[[str], object]

    def measure(
        self, tasks: Mapping[Task, Section], data: Data, model: Model, settings: Mapping[str, Setting]
    ) -> dict[Task, Record]:
        """Returns the record of every task on one data set; what is missing is measured and kept, one by one."""
        about = {task: self._about(task, section, data, settings[task.test]) for task, section in tasks.items()}
        processes = next(iter(settings.values())).processes
        kept = {} if self.again else {record.key: record for record in results.read(self.folder) if self._whole(record)}
        missing = from_first([about[task].key not in kept for task in tasks])  # whose disk may alone hold results
        with tables_of(model.module, [*settings.values()]):
            for task in (task for task, is_missing in zip(tasks, missing, strict=True) if is_missing):
                record = self._record(task, tasks[task], about[task], model, settings[task.test])
                if processes.is_main_process:
                    results.add(self.folder, [record])
                    kept[record.key] = record
                    self.say(_line(self.loaded, record))
        return {task: kept[about[task].key] for task in tasks} if processes.is_main_process else {}

    def _about(self, task: Task, section: Section, data: Data, setting: Setting) -> Record:
        named: dict[str, Any] = {"label": task.label}
        named |= {"score": data.score} if data.score != measures.ACCURACY else {}
        named |= {"train": None} if data.of_classifiers else {}
        named |= {"group": task.group_label} if task.group else {}
        own = setting.data == self.loaded.run.data and setting.classes == BY_NAME and not setting.limited
        own = own and not data.of_classifiers  # whose content has no training data
        return self.subject.about(task.evaluator, section, setting.described(own) | named, setting.precision)

    def _whole(self, record: Record) -> bool:
        """Returns whether the outcomes of a record, if it has any, are still as they were kept."""
        return not record.outcomes or results.read_outcomes(self.folder, record) is not None

    def _record(self, task: Task, section: Section, about: Record, model: Model, setting: Setting) -> Record:
        try:
            evaluator = make(task.evaluator, section, setting)
            result = checked(evaluator.measure(model.module, self.subject.step, never), task.evaluator)
            return self.subject.record(about, result, setting) if setting.processes.is_main_process else about
        except ConfigError as error:
            raise ConfigError(f"{task.evaluator} on {about.data['label']}: {error}") from None


def _words(data: Data, test: Any, changes: Words) -> dict[str, Mapping[str, Any]]:
    chosen = {"classes": None, "fraction": None, "labels": None, **changes.get("data", {}), **data.train, "test": test}
    return {**changes, "data": chosen}


def _section(task: Task) -> Section:
    """Returns the checked options of a task's evaluator."""
    try:
        config = EVALUATORS.find(task.evaluator).Config
    except ConfigError as error:
        raise ConfigError(f"{task.origins['']}: {error}") from None
    section: Section = build(config, Tree(task.options, task.origins))
    if section.every is not None:
        raise ConfigError(f"{task.origins['every']}: every: is for evaluators inside training; leave it out")
    return section


def _line(model: Model, record: Record) -> str:
    found = measures.of(record)
    numbers = (f"{one.title} {f'{in_percent(one.value)} %' if one.share else f'{one.value:.4g}'}" for one in found)
    what = "untrained" if record.backbone == UNTRAINED else f"step {record.step}"
    return f"{model.folder} ({what}) on {record.data['label']}: {', '.join(numbers)}"
