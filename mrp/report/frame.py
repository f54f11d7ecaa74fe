"""Where values lie in a picture: its axes, what is marked at single steps, and the names beside lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mrp.report.document import Markup, tag
from mrp.report.series import Chart, Floats, Marks, Series

WIDTH, HEIGHT = 420, 250
TOP, BOTTOM = 20, 36
_RIGHT = 12
_LETTER = 7.0  # pixels, about: there is nothing here that measures text
_LINE = 14  # pixels from one label to the next
_LONGEST = 15  # letters of a name beside its line
_WIDE_RANGE = 50.0  # from the smallest to the largest: then a linear axis would show the largest alone


@dataclass(frozen=True)
class Frame:
    """Where values lie in the picture."""

    horizontal: tuple[float, float]
    vertical: tuple[float, float]
    log: bool
    left: float
    right: float
    bottom: float = BOTTOM

    @classmethod
    def of(cls, chart: Chart, series: Sequence[Series]) -> Frame:
        """Returns the place that the values of a chart, its marks and its labels need."""
        every = np.concatenate([part for one in series for part in (one.y, one.low, one.high) if part is not None])
        every = every[np.isfinite(every)]
        places = np.concatenate([one.x for one in series])
        log = bool(every.min() > 0 and every.max() / every.min() > _WIDE_RANGE) and not chart.zero
        vertical = (float(every.min()), float(every.max())) if log else span(every, chart.zero)
        marked = [*chart.marks.resumes, *chart.marks.incidents, *chart.marks.evaluations]  # also behind the last value
        horizontal = (min(0.0, float(places.min())), max(float(places.max()), 1.0, *marked))
        longest = max(map(len, _named(_ticks(vertical, log))))
        names = max(map(len, _shortened([one.name for one in series]))) if len(series) > 1 else 0
        return cls(horizontal, vertical, log, 10 + _LETTER * longest, _RIGHT + 1.1 * _LETTER * names)

    def across(self, value: float) -> float:
        """Returns how far right a step lies."""
        low, high = self.horizontal
        return round(self.left + (value - low) / (high - low) * (WIDTH - self.left - self.right), 1)

    def up(self, value: float) -> float:
        """Returns how far below the top a value lies."""
        low, high = self.vertical
        share = (
            (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
            if self.log else (value - low) / (high - low)
        )  # fmt: skip
        return round(HEIGHT - self.bottom - share * (HEIGHT - self.bottom - TOP), 1)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """Returns a line through points."""
        return "M" + "L".join(f"{self.across(float(x))} {self.up(float(y))}" for x, y in points)

    def axes(self, chart: Chart) -> Iterator[Markup]:
        """Yields the lines and numbers of both axes."""
        end = WIDTH - self.right
        ticks = _ticks(self.vertical, self.log)
        for value, name in zip(ticks, _named(ticks), strict=True):
            up = self.up(value)
            yield tag("line", class_="grid", x1=self.left, x2=end, y1=up, y2=up)
            yield text(self.left - 5, up + 4, name, "end")
        base = HEIGHT - self.bottom
        yield tag("line", class_="axis", x1=self.left, x2=end, y1=base, y2=base)
        ticks = _ticks(self.horizontal, False)
        for value, name in zip(ticks, _named(ticks), strict=True):
            yield text(self.across(value), base + 16, name, "middle")
        yield text(end, HEIGHT - 3, chart.horizontal, "end")

    def marks(self, marks: Marks, curve: Series) -> Iterator[Markup]:
        """Yields what happened: starts and incidents across the whole picture, spikes on the curve."""
        base = HEIGHT - self.bottom
        for step in _few(marks.evaluations):
            at = self.across(step)
            yield tag("line", class_="evaluation", x1=at, x2=at, y1=base, y2=base - 5)
        for step in _few(marks.resumes):
            at = self.across(step)
            title = tag("title", f"resumed at step {step:,}")
            yield tag("line", title, class_="resume", x1=at, x2=at, y1=TOP, y2=base)
            yield text(at, TOP - 6, "↻", "middle")
        for step in _few(marks.incidents):
            at = self.across(step)
            title = tag("title", f"step {step:,} was not finite")
            yield tag("path", title, class_="incident", d=f"M{at - 4} {TOP - 11}l8 8m0 -8l-8 8M{at} {TOP}V{base}")
        for step in _few(marks.spikes):
            at, up = self.across(step), self.up(float(np.interp(step, curve.x, curve.y)))
            title = tag("title", f"step {step:,} is a spike")
            yield tag("path", title, class_="spike", d=f"M{at} {up - 4}l5 -9h-10z")

    def names(self, series: Mapping[int, Series]) -> Iterator[Markup]:
        """Yields the names of several lines beside their ends, pushed apart where they would meet."""
        if len(series) < 2:
            return
        places = sorted((self.up(float(one.y[-1])), number) for number, one in series.items())
        heights, before = [], -math.inf
        for up, _ in places:
            before = max(up, before + _LINE)
            heights.append(before)
        over = max(0.0, heights[-1] - (HEIGHT - self.bottom))
        names = dict(zip(series, _shortened([one.name for one in series.values()]), strict=True))
        for (_, number), up in zip(places, heights, strict=True):
            name = text(WIDTH - self.right + 9, up - over + 4, names[number], class_="name")
            yield tag("g", name, class_=f"c{number}")


def _shortened(names: Sequence[str]) -> list[str]:
    """Returns names that have room beside lines; of long ones the beginning that all share is left out first."""
    if max(map(len, names)) > _LONGEST:
        letters = zip(*names, strict=False)
        shared = next((place for place, each in enumerate(letters) if len({*each}) > 1), len(min(names, key=len)))
        shared = min(shared, len(min(names, key=len)) - 3)
        word = 1 + max(names[0].rfind(sign, 0, shared) for sign in "_-/ (")
        shared = word if shared - word < 8 else shared  # from the beginning of a word, unless that is far before
        names = [f"…{name[shared:]}" for name in names] if shared > 1 else names
    return [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]


def _few(steps: Sequence[int], most: int = 60) -> Sequence[int]:
    """Returns the steps, or as many of them, evenly chosen, as can be told apart."""
    return steps if len(steps) <= most else [steps[i] for i in np.linspace(0, len(steps) - 1, most).astype(int)]


def span(values: Floats, zero: bool) -> tuple[float, float]:
    """Returns the bounds of a linear axis: a little more than the values need."""
    low, high = float(values.min()), float(values.max())
    low = min(low, 0.0) if zero else low
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if zero and low == 0 else low - room), high + room


def _ticks(bounds: tuple[float, float], log: bool, most: int = 5) -> list[float]:
    """Returns round numbers within the bounds."""
    low, high = bounds
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1,) if len(decades) > 3 else (1, 2, 5)
        found = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [one for one in found if low <= one <= high]
        return found[:: math.ceil(len(found) / 8)] if found else [low, high]
    raw = (high - low) / most
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw)
    first = math.ceil(low / step - 1e-9)
    return [one for number in range(first, first + 2 * most) if (one := number * step) <= high + 1e-9 * step]


def _named(values: Sequence[float]) -> list[str]:
    """Returns the numbers of an axis in words, with as many digits as it takes to tell them apart."""
    each = ([_tick(value, digits) for value in values] for digits in range(4, 16))
    return next((names for names in each if len({*names}) == len(names)), [f"{value:.17g}" for value in values])


def _tick(value: float, digits: int) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit == "M" and abs(value) >= size):
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}".replace("e-0", "e-")


def text(x: float, y: float, words: str, anchor: str | None = None, class_: str | None = None) -> Markup:
    """Returns words at a place."""
    return tag("text", words, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=class_)
