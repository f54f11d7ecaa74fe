"""What `mrp judge` has measured as one page, written in every form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrp.config import ConfigError
from mrp.evaluate import copies, measures, results
from mrp.evaluate.results import UNTRAINED
from mrp.judging import Judged
from mrp.report import corrupted
from mrp.report.about import same_but_seed
from mrp.report.page import Cell, Column, Page, Row, cell_of, short_names
from mrp.report.render import write
from mrp.suites import Plan, Task

NAME = "judge"
FORMS = (".json", ".md", ".tex", ".png")


def page_of(plan: Plan, judged: Sequence[Judged], of_answers: bool = False) -> Page:
    """Returns one row per set of weights, and one column per number of each task.

    With `of_answers`, columns hold all that is known of a classifier's answers, and each corruption.
    """
    paths = list(dict.fromkeys(one.path for one in judged))
    names = dict(zip(paths, short_names(paths), strict=True))
    rows = tuple(_row(names[one.path], one) for one in judged)
    columns: dict[tuple[int, str], Column] = {}
    cells: dict[tuple[int, tuple[int, str]], Cell] = {}
    for number, (label, tasks) in enumerate(_columns(plan)):
        for row, one in enumerate(judged):
            if not tasks.keys() <= one.records.keys():
                continue
            for cell in _cells(plan, tasks, one, of_answers):
                assert cell.measure is not None
                columns[number, cell.measure.name] = Column(label, cell.measure.title, cell.measure.better)
                cells[row, (number, cell.measure.name)] = cell
    order = {key: number for number, key in enumerate(columns)}
    of_classifiers = all(data.of_classifiers for data in plan.data.values())
    title = "classifiers" if of_answers else f"suite {plan.suite}" + ("" if of_classifiers else ", frozen features")
    page = Page(
        title, rows, tuple(columns.values()), {(row, order[key]): cell for (row, key), cell in cells.items()},
        (*_of_test_sets(plan), *_of_copies(judged), *_of_weights(rows, judged), *_not_given(plan)),
    )  # fmt: skip
    runs = [
        (row.name, one.folder, (row.step, one.subject.weights, one.subject.backbone))
        for row, one in zip(rows, judged, strict=True)
    ]
    return page.with_seeds(same_but_seed(runs))


def _columns(plan: Plan) -> list[tuple[str, dict[Task, str]]]:
    """Returns the tasks of each column with their corruptions, `fog/3`, where there are several; and its data."""
    found: dict[Any, tuple[str, dict[Task, str]]] = {}
    for task in plan.tasks:
        if not task.group:
            found[task] = task.label, {task: ""}
            continue
        key = task.evaluator, repr(task.options), task.data, task.group
        found.setdefault(key, (task.group_label, {}))[1][task] = task.test.removeprefix(f"{task.group}/")
    return list(found.values())


def _cells(plan: Plan, tasks: Mapping[Task, str], judged: Judged, of_answers: bool) -> Iterator[Cell]:
    """Yields the numbers of one task, or what those of many corruptions come to."""
    first = next(iter(tasks))
    if first.group:
        found = measures.of(judged.records[first], measures.ACCURACY, first.title)
        if not found or not found[0].counted:
            raise ConfigError(f"{first.evaluator} gives no accuracy on {first.label}; measure it without corruptions")
        prefix = "" if of_answers else f"{found[0].title}: "
        records = {name: judged.records[task] for task, name in tasks.items()}
        yield from corrupted.cells(judged.folder, records, prefix, each=of_answers)
        return
    record, score = judged.records[first], plan.data[first.data].score
    outcomes = results.read_outcomes(judged.folder, record)
    found = measures.of_answers(record) if of_answers else measures.of(record, score, first.title)
    for measure in found:
        per_class = measure.name == measures.MEAN_PER_CLASS if of_answers else score == measures.MEAN_PER_CLASS
        yield cell_of(measure, outcomes, per_class)


def _of_test_sets(plan: Plan) -> list[str]:
    """Returns on which test sets answers are limited, where they are."""
    groups = {(task.data, task.test): task.group or task.test for task in plan.tasks}
    limited = {
        "/".join(filter(None, (data.name, groups[data.name, test.name])))
        for data in plan.data.values() for test in data.tests if test.limited and (data.name, test.name) in groups
    }  # fmt: skip
    if not limited:
        return []
    return [f"Answers are among all classes; on {', '.join(sorted(limited))} among the classes of the test set alone."]


def _of_copies(judged: Sequence[Judged]) -> list[str]:
    """Returns of which test sets images are among the training images."""
    found = {
        task.label: count
        for one in judged for task, record in one.records.items() if (count := record.result.get(copies.COPIES))
    }  # fmt: skip
    return [copies.note(label, count) for label, count in found.items()]


def _of_weights(rows: Sequence[Row], judged: Sequence[Judged]) -> list[str]:
    """Returns what is said of single weights; once, where it is the same of all."""
    said: dict[str, list[str]] = {}
    for row, one in zip(rows, judged, strict=True):
        for note in one.notes:
            said.setdefault(note, []).append(row.name)
    return [note if len(names) == len(rows) else f"{', '.join(names)}: {note}" for note, names in said.items()]


def write_all(page: Page, folder: Path, name: str = NAME) -> None:
    """Writes `judge.json`, `.md`, `.tex` and `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in FORMS:
        write(page, folder / f"{name}{form}")


def _row(name: str, judged: Judged) -> Row:
    subject = judged.subject
    if subject.backbone == UNTRAINED:
        return Row(f"untrained, as {name}", f"untrained, as {name}")
    name = name if subject.weights == "student" else f"{name} ({subject.weights})"
    return Row(name, name, subject.step)


def _not_given(plan: Plan) -> list[str]:
    """Returns what was left out because its place is not known, in one line per place."""
    left: dict[str, dict[str, None]] = {}
    for task in plan.tasks:
        for place in task.missing:
            left.setdefault(place, {})[task.label] = None
    return [f"Not given: {place}= (for {', '.join(data)})." for place, data in left.items()]
