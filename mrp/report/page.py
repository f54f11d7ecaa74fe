"""One table of what was measured of several weights: its rows, its columns, and which value is the best of a column."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrp.config import ConfigError
from mrp.data.order import Ints
from mrp.evaluate import statistics
from mrp.evaluate.interval import Interval
from mrp.evaluate.measures import Measure
from mrp.evaluate.results import Outcomes

BEST = "better than each of the others: the 95 % interval of every difference excludes 0"


@dataclass(frozen=True)
class Row:
    """Some weights, or the mean over several that differ in their seed alone."""

    name: str
    run: str
    step: int | None = None
    members: tuple[int, ...] = ()  # of a mean: the numbers of its rows


@dataclass(frozen=True)
class Column:
    """One measure on one data set; or, without data, what else is known of each row, such as a cost."""

    data: str
    title: str
    better: str = "higher"  # "higher", "lower", or "" where neither is


@dataclass(frozen=True)
class Cell:
    """What stands in one row and column: a value with its interval, or a text."""

    text: str = ""
    measure: Measure | None = None
    outcomes: Outcomes | None = None  # of the images that the value was counted on
    per_class: bool = False  # whether the value is a mean over classes
    scores: statistics.Scores | None = None  # of each test image, where the value is their mean
    groups: Ints | None = None  # of these images, where the data have groups
    seeds: tuple[float, ...] = ()  # the values whose mean this is

    @property
    def interval(self) -> Interval | None:
        """Returns the value with its bounds, where these are known."""
        one = self.measure
        return None if one is None or one.low is None or one.high is None else Interval(one.value, one.low, one.high)


@dataclass(frozen=True)
class Page:
    """A table, and what is said below it."""

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[int, int], Cell]  # by the numbers of row and column
    notes: tuple[str, ...] = ()
    _best: dict[int, int | None] = field(default_factory=dict, compare=False)

    def is_best(self, row: int, column: int) -> bool:
        """Returns whether a value is better than each other one of its column, as far as intervals tell."""
        if column not in self._best:
            self._best[column] = self._find_best(column)
        return self._best[column] == row

    def _find_best(self, column: int) -> int | None:
        """Returns the best row; rows that a mean over seeds stands for do not take part beside it."""
        sign = {"higher": 1, "lower": -1}.get(self.columns[column].better, 0)
        within = {member for row in self.rows for member in row.members}
        cells = {row: self.cells.get((row, column), Cell()) for row in range(len(self.rows)) if row not in within}
        values = {row: sign * cell.measure.value for row, cell in cells.items() if cell.measure is not None}
        if not sign or len(values) < 2:
            return None
        best = max(values, key=lambda row: values[row])
        for row in values.keys() - {best}:
            difference = difference_of(cells[best], cells[row])
            if difference is None or not (difference.low > 0 if sign > 0 else difference.high < 0):
                return None
        return best

    def differences(self) -> list[dict[str, Any]]:
        """Returns each pair of rows in each column: the difference, its interval, and McNemar's p where it applies."""
        return [
            {"data": about.data, "measure": about.title, "first": first.name, "second": self.rows[second].name}
            | found._asdict() | {"p": _p(*cells), "share": cells[0].measure is not None and cells[0].measure.share}
            for column, about in enumerate(self.columns)
            for number, first in enumerate(self.rows)
            for second in range(number + 1, len(self.rows))
            if (cells := (self.cells.get((number, column), Cell()), self.cells.get((second, column), Cell())))
            and (found := difference_of(*cells)) is not None
        ]  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """Returns the page as plain data, for a file."""
        cells = [
            {"row": self.rows[row].name, "data": self.columns[column].data, "measure": self.columns[column].title}
            | (_value(cell) if cell.measure else {"text": cell.text})
            | {"best": self.is_best(row, column)}
            for (row, column), cell in sorted(self.cells.items(), key=lambda item: item[0])
        ]
        about = {"title": self.title, "rows": [row.name for row in self.rows], "notes": self.notes}
        return about | {"cells": cells, "differences": self.differences()}

    def with_seeds(self, groups: Mapping[str, Sequence[int]]) -> Page:
        """Returns the page with a further row for each group of rows that differ in their seed alone: their mean."""
        rows, cells = list(self.rows), dict(self.cells)
        for name, members in groups.items():
            for column in range(len(self.columns)):
                mean = _over_seeds([self.cells.get((member, column), Cell()) for member in members])
                if mean is not None:
                    cells[len(rows), column] = mean
            step = self.rows[members[0]].step
            rows.append(Row(f"{name}, mean of {len(members)} seeds", f"{name}, mean", step, tuple(members)))
        return replace(self, rows=tuple(rows), cells=cells, _best={})


def cell_of(measure: Measure, outcomes: Outcomes | None, per_class: bool) -> Cell:
    """Returns the cell of a measure; only what counts right answers is compared by them."""
    return Cell("", measure, outcomes if measure.counted else None, per_class and measure.counted)


def difference_of(first: Cell, second: Cell) -> Interval | None:
    """Returns how much larger the first value is, by the sharpest comparison that both allow; None where none does."""
    if first.measure is None or second.measure is None:
        return None
    if first.seeds and second.seeds:
        if not (_differ(first.seeds) or _differ(second.seeds)):
            return None  # where no seed differs from another, nothing says how far a further one would
        return statistics.between_seeds(first.seeds, second.seeds)
    if (pair := _same_images(first, second)) is not None:
        mine, theirs = pair
        return statistics.paired(mine.right, theirs.right, mine.classes if first.per_class else None, mine.groups)
    if first.scores is not None and second.scores is not None and len(first.scores) == len(second.scores):
        return statistics.mean_of(first.scores - second.scores, first.groups)
    if first.measure.draws and len(first.measure.draws) == len(second.measure.draws):
        return _of_draws(first.measure, second.measure)
    if first.interval is None or second.interval is None:
        return None
    return statistics.unpaired(first.interval, second.interval)


def _of_draws(first: Measure, second: Measure) -> Interval | None:
    """Returns the difference of two means over the same draws; None where these are equal and nothing else is known.

    They are equal where a class has no more images than are drawn of it.
    """
    value = first.value - second.value
    if first.groups and len(first.groups) == len(second.groups):
        return statistics.over_draws_and_images((first.draws, first.groups), (second.draws, second.groups), value)
    if first.groups or second.groups:
        return None  # the other one was measured before its groups were kept; draws alone say too little
    if not (_differ(first.draws) or _differ(second.draws)):
        return None
    return statistics.over_draws(first.draws, second.draws, value)


def _same_images(first: Cell, second: Cell) -> tuple[Outcomes, Outcomes] | None:
    """Returns both cells' outcomes, where they are about the same images: a column is about one data set."""
    mine, theirs = first.outcomes, second.outcomes
    if mine is None or theirs is None or not np.array_equal(mine.classes, theirs.classes):
        return None
    return mine, theirs


def _p(first: Cell, second: Cell) -> float | None:
    pair = None if first.per_class else _same_images(first, second)
    return None if pair is None else statistics.mcnemar(pair[0].right, pair[1].right, pair[0].groups)


def _over_seeds(cells: Sequence[Cell]) -> Cell | None:
    """Returns the mean of the cells of several seeds, with Student's interval; None where one has no value.

    Values that are all the same tell nothing of the spread of further seeds, so their mean has no interval.
    """
    found = [cell.measure for cell in cells if cell.measure is not None]
    if len(found) < len(cells):
        return None
    values = tuple(one.value for one in found)
    mean = statistics.over_seeds(values)
    least, most = (0.0, 1.0) if found[0].share else (-math.inf, math.inf)
    low, high = (max(least, mean.low), min(most, mean.high)) if _differ(values) else (None, None)
    measure = replace(found[0], value=mean.value, low=low, high=high, draws=(), groups=(), counted=False)
    return Cell("", measure, seeds=values)


def _differ(values: Sequence[float]) -> bool:
    return min(values) < max(values)


def _value(cell: Cell) -> dict[str, Any]:
    one = cell.measure
    assert one is not None
    return {"value": one.value, "low": one.low, "high": one.high} | ({"seeds": cell.seeds} if cell.seeds else {})


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last parts of the paths, as many as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ConfigError("the same run is given twice; give each once")
    count = next(n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts))
    return ["/".join(one[-count:]) for one in parts]


def without_hashes(text: str) -> str:
    """Returns a text in which the first twelve digits stand for a hash of 64, which would widen every table."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", text)
