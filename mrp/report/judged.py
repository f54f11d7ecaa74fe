"""What `mrp judge` has measured as one page, written in every form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mrp.evaluate import measures, results
from mrp.evaluate.results import UNTRAINED
from mrp.judging import Judged
from mrp.report.about import same_but_seed
from mrp.report.page import Cell, Column, Page, Row, cell_of, short_names
from mrp.report.render import write
from mrp.suites import Plan, Task

NAME = "judge"
FORMS = (".json", ".md", ".tex", ".png")


def page_of(plan: Plan, judged: Sequence[Judged]) -> Page:
    """Returns one row per set of weights, and one column per number of each task."""
    paths = list(dict.fromkeys(one.path for one in judged))
    names = dict(zip(paths, short_names(paths), strict=True))
    rows = tuple(_row(names[one.path], one) for one in judged)
    columns: dict[tuple[int, str], Column] = {}
    cells: dict[tuple[int, tuple[int, str]], Cell] = {}
    for number, task in enumerate(plan.tasks):
        for row, one in enumerate(judged):
            if task not in one.records:
                continue
            record = one.records[task]
            outcomes = results.read_outcomes(one.folder, record)
            score = plan.data[task.data].score
            for measure in measures.of(record, score, task.title):
                columns[number, measure.name] = Column(_data(task), measure.title, measure.better)
                cells[row, (number, measure.name)] = cell_of(measure, outcomes, score == measures.MEAN_PER_CLASS)
    order = {key: number for number, key in enumerate(columns)}
    page = Page(
        f"suite {plan.suite}, frozen features", rows, tuple(columns.values()),
        {(row, order[key]): cell for (row, key), cell in cells.items()}, tuple(_not_given(plan)),
    )  # fmt: skip
    runs = [
        (row.name, one.folder, (row.step, one.subject.weights, one.subject.backbone))
        for row, one in zip(rows, judged, strict=True)
    ]
    return page.with_seeds(same_but_seed(runs))


def write_all(page: Page, folder: Path) -> None:
    """Writes `judge.json`, `.md`, `.tex` and `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in FORMS:
        write(page, folder / f"{NAME}{form}")


def _row(name: str, judged: Judged) -> Row:
    subject = judged.subject
    if subject.backbone == UNTRAINED:
        return Row(f"untrained, as {name}", f"untrained, as {name}")
    name = name if subject.weights == "student" else f"{name} ({subject.weights})"
    return Row(name, name, subject.step)


def _data(task: Task) -> str:
    return f"{task.data}/{task.test}" if task.test else task.data


def _not_given(plan: Plan) -> list[str]:
    """Returns what was left out because its place is not known, in one line per place."""
    left: dict[str, dict[str, None]] = {}
    for task in plan.tasks:
        for place in task.missing:
            left.setdefault(place, {})[_data(task)] = None
    return [f"Not given: {place}= (for {', '.join(data)})." for place, data in left.items()]
