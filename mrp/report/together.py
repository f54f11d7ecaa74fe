"""The page about several runs: one table, curves over each other, and what their configurations differ in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrp.folder import flat
from mrp.report import charts, compare, curves
from mrp.report.document import Markup, facts, join, page, table, tag
from mrp.report.page import short_names, without_hashes
from mrp.report.pictured import strip, strips
from mrp.report.series import SERIES
from mrp.report.single import fitted, results_table
from mrp.report.told import Told, steps_of, warnings, what_ran
from mrp.run import NOT_IN_IDENTITY


def write(paths: Sequence[Path], again: int | None = None) -> str:
    """Returns the page; images are shown smaller where it would be larger than its limit."""
    told = [Told.of(path, name) for path, name in zip(paths, short_names(paths), strict=True)]
    return fitted(lambda side: page(f"{len(told)} runs", _body(told, side), again))


def _body(told: Sequence[Told], side: int) -> Iterator[Markup]:
    names = [one.history.name for one in told]
    yield tag("h1", f"{len(told)} runs: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}")
    yield from _runs(told)
    yield from _results(told)
    yield from _curves(told)
    yield from _reconstructions(told, side)
    yield from _differences(told)


def _runs(told: Sequence[Told]) -> Iterator[Markup]:
    rows = []
    for one in told:
        state, step = (one.status.state, steps_of(one.status)) if one.status else ("imported weights", "-")
        speed = one.verdict.kind if one.verdict else "not recorded"
        rows.append([one.history.name, state, step, speed])
    yield table(["run", "state", "step", "speed"], rows, labels=4)
    yield facts((one.history.name, what_ran(one.history)) for one in told if one.history.values)
    said = [join([tag("strong", one.history.name), ": ", text]) for one in told for text in warnings(one)]
    if said:
        yield tag("ul", *(tag("li", one) for one in said), class_="warnings", role="list")


def _results(told: Sequence[Told]) -> Iterator[Markup]:
    measured = [one for one in told if one.results is not None]
    yield tag("h2", "Results")
    if measured:
        names = [one.history.name for one in measured]
        yield from results_table(compare.page_of([one.path for one in measured], names))
    for one in told:
        if one.damage:
            yield tag("p", f"{one.history.name}: {one.damage}", class_="note")
        elif one.results is None:
            yield tag("p", f"{one.history.name}: nothing was measured after its training; ", tag(
                "code", f"mrp probe {one.path}"
            ), class_="note")  # fmt: skip


def _curves(told: Sequence[Told]) -> Iterator[Markup]:
    histories = [one.history for one in told if one.history.columns]
    if not histories:
        return
    if len(histories) > SERIES:
        yield tag("p", f"The first {SERIES} of {len(histories)} runs are drawn.", class_="note")
        histories = histories[:SERIES]
    methods = {str(one.section("objective")) for one in histories}
    for group in (curves.TRAINING, curves.FEATURES):
        drawn = list(curves.of_several(group, histories))
        if group is curves.FEATURES:
            tags = curves.of_several(curves.TAGS, histories)
            drawn = [*curves.accuracies_of_several(histories), *tags, *drawn]
        if drawn:
            yield tag("h2", group.title)
            if group is curves.TRAINING and len(methods) > 1:
                yield tag(
                    "p",
                    "Methods or their options differ, so losses may be on different scales: compare their courses.",
                    class_="note",
                )
            yield tag("div", *map(charts.draw, drawn), class_="charts")


def _reconstructions(told: Sequence[Told], side: int) -> Iterator[Markup]:
    """Yields the newest checkpoints' reconstructions of the same images, where all were given the same."""
    newest = [(one.history.name, one.pictures.pictures[-1]) for one in told[:SERIES] if one.pictures.pictures]
    drawn = [(name, one.arrays) for name, one in newest if "painted" in one.arrays]
    drawn = [(name, arrays) for name, arrays in drawn if np.array_equal(arrays["input"], drawn[0][1]["input"])]
    if len(drawn) < 2:
        return
    yield tag("h2", "Reconstructions of the same held-out images")
    columns, seen = [strip("input", drawn[0][1]["input"], side)], None
    for name, arrays in drawn:
        if seen is None or not np.array_equal(seen, arrays["seen"]):  # methods hide other patches
            seen = arrays["seen"]
            columns.append(strip("seen", seen, side))
        columns.append(strip(name, arrays["painted"], side))
    yield strips(columns)


def _differences(told: Sequence[Told]) -> Iterator[Markup]:
    """Yields the options in which the runs differ, and which of them do not change results."""
    values = [flat(one.history.values) for one in told]
    every = dict.fromkeys(key for one in values for key in one)
    keys = [key for key in every if any(one.get(key) != values[0].get(key) for one in values)]
    yield tag("h2", "Differences of configuration")
    if not keys:
        yield tag("p", "None: every option is the same.")
        return
    rows = [[f"{key} (free)" if _free(key) else key, *(_shown(one.get(key)) for one in values)] for key in keys]
    yield table(["option", *(one.history.name for one in told)], rows, labels=1 + len(told))
    if any(_free(key) for key in keys):
        yield tag("p", "(free): does not change results.", class_="note")


def _free(key: str) -> bool:
    return key.partition(".")[0] in NOT_IN_IDENTITY


def _shown(value: Any) -> str:
    return "-" if value is None else without_hashes(str(value))
