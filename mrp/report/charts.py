"""Curves as SVG, which follows the colours of the page: nothing but numbers comes in, and no library draws them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrp.report.document import Markup, join, tag

Floats = NDArray[np.float64]
Kind = Literal["noisy", "exact", "measured"]  # drawn smoothed over its points, as it is, or with a marker per value

WIDTH, HEIGHT = 420, 250
SERIES = 8  # that differ in colour, dashes and markers together
_TOP, _BOTTOM, _RIGHT = 20, 36, 12
_LETTER = 7.0  # pixels, about: there is nothing here that measures text
_LINE = 14  # pixels from one label to the next
_LONGEST = 15  # letters of a name beside its line
_DRAWN = 300  # points; of more, what a bin holds is drawn: its mean, its least and its largest value
SMOOTHED = 30  # points; a curve of fewer is drawn as it is, with a marker for each
_BINS = 200
_WIDE_RANGE = 50.0  # from the smallest to the largest: then a linear axis would show the largest alone


@dataclass(frozen=True)
class Series:
    """Values over steps, with the bounds of their 95 % intervals where these are known."""

    name: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None

    @classmethod
    def of(cls, name: str, x: ArrayLike, y: ArrayLike) -> Series:
        """Returns a series without intervals."""
        return cls(name, np.asarray(x, np.float64), np.asarray(y, np.float64))

    def finite(self) -> Series:
        """Returns the series without values that are not finite."""
        kept = np.isfinite(self.x) & np.isfinite(self.y)
        bounds = (None if one is None else one[kept] for one in (self.low, self.high))
        return Series(self.name, self.x[kept], self.y[kept], *bounds)


@dataclass(frozen=True)
class Marks:
    """What happened at single steps."""

    resumes: Sequence[int] = ()
    incidents: Sequence[int] = ()
    spikes: Sequence[int] = ()
    evaluations: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """What is drawn, and the sentence that says what it shows."""

    title: str
    unit: str  # of the vertical axis
    series: Sequence[Series]
    marks: Marks = field(default_factory=Marks)
    kind: Kind = "noisy"
    note: str = ""
    horizontal: str = "step"
    zero: bool = False  # whether the vertical axis begins at zero


def smoothed(values: Floats) -> Floats:
    """Returns the mean over a centred window of about a twentieth of the curve, which is narrower at its ends."""
    reach = math.ceil(len(values) / 40)
    window = np.ones(2 * reach + 1)
    return np.convolve(values, window)[reach:-reach] / np.convolve(np.ones_like(values), window)[reach:-reach]


def binned(x: Floats, y: Floats, bins: int = _BINS) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns the mean place, the mean, the least and the largest value of each bin that holds any."""
    edges = np.linspace(x[0], x[-1], bins + 1)
    starts = np.unique(np.searchsorted(x, edges[:-1], side="left"))
    counts = np.diff([*starts, len(x)])
    places, means = (np.add.reduceat(values, starts) / counts for values in (x, y))
    return places, means, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def draw(chart: Chart) -> Markup:
    """Returns a figure: the sentence, the curves, what the signs mean, and a place for the value under the pointer.

    A series looks the same in all charts in which it has the same place, wherever others have no values.
    """
    finite = {number: one.finite() for number, one in enumerate(chart.series[:SERIES])}
    drawn = {number: one for number, one in finite.items() if len(one.x)}
    series = list(drawn.values())
    if not series:
        return Markup("")
    frame = _Frame.of(chart, series)
    inside = [*frame.axes(chart), *frame.marks(chart.marks, series[0])]
    inside += [_draw_series(frame, one, number, chart) for number, one in drawn.items()]
    inside += frame.names(drawn)
    cursor = tag("line", class_="axis cursor hidden", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM)
    picture = tag("svg", *inside, cursor, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=chart.title)
    unit = f"{chart.unit}, logarithmic" if frame.log else chart.unit
    left_out = sum(int((~np.isfinite(one.y)).sum()) for one in chart.series)
    notes = [chart.note, *_notes_of_signs(chart, series)]
    notes += [f"{left_out:,} values that are not finite are left out."] if left_out else []
    keys = [_key(one.name, number, chart.kind) for number, one in drawn.items()] if len(series) > 1 else []
    return tag(
        "figure",
        tag("figcaption", tag("h3", chart.title), unit),
        picture,
        tag("ul", *keys, class_="legend") if keys else None,
        tag("div", class_="value"),
        tag("div", " ".join(filter(None, notes)), class_="note") if any(notes) else None,
        class_="chart",
    )


def scatter(title: str, x: Floats, y: Floats, labels: Sequence[str], groups: Sequence[int], note: str) -> Markup:
    """Returns points of several groups, which differ in colour and shape and stand beside their own names."""
    frame = _Frame(_range(x, False), _range(y, False), log=False, left=8, right=8, bottom=8)
    inside = [
        _marker(frame.across(at), frame.up(up), group, "dot", 3.2)
        for at, up, group in zip(x.tolist(), y.tolist(), groups, strict=True)
    ]
    for number, label in enumerate(labels):
        chosen = np.asarray(groups) == number
        if chosen.any():
            at, up = float(np.median(x[chosen])), float(np.median(y[chosen]))
            inside.append(_text(frame.across(at), frame.up(up) + 4, label, "middle", class_="halo"))
    drawn = tag("svg", *inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    keys = [tag("li", _sign(_marker(15, 6, n, "dot", 4), n), tag("span", one)) for n, one in enumerate(labels)]
    caption = tag("figcaption", tag("h3", title))
    return tag("figure", caption, drawn, tag("ul", *keys, class_="legend"), tag("div", note, class_="note"))


def said(value: float, digits: int = 3) -> str:
    """Returns a number with few digits, as people write it."""
    if 100 <= abs(value) < 1e9:
        return f"{value:,.0f}" if digits < 5 or abs(value) >= 1e5 else f"{value:,.2f}"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


@dataclass(frozen=True)
class _Frame:
    """Where values lie in the picture."""

    horizontal: tuple[float, float]
    vertical: tuple[float, float]
    log: bool
    left: float
    right: float
    bottom: float = _BOTTOM

    @classmethod
    def of(cls, chart: Chart, series: Sequence[Series]) -> _Frame:
        every = np.concatenate([part for one in series for part in (one.y, one.low, one.high) if part is not None])
        every = every[np.isfinite(every)]
        places = np.concatenate([one.x for one in series])
        log = bool(every.min() > 0 and every.max() / every.min() > _WIDE_RANGE) and not chart.zero
        vertical = (float(every.min()), float(every.max())) if log else _range(every, chart.zero)
        marked = [*chart.marks.resumes, *chart.marks.incidents, *chart.marks.evaluations]  # also behind the last value
        horizontal = (min(0.0, float(places.min())), max(float(places.max()), 1.0, *marked))
        longest = max(len(_tick(one)) for one in _ticks(vertical, log))
        names = max(min(len(one.name), _LONGEST) for one in series) if len(series) > 1 else 0
        return cls(horizontal, vertical, log, 10 + _LETTER * longest, _RIGHT + 1.1 * _LETTER * names)

    def across(self, value: float) -> float:
        low, high = self.horizontal
        return round(self.left + (value - low) / (high - low) * (WIDTH - self.left - self.right), 1)

    def up(self, value: float) -> float:
        low, high = self.vertical
        share = (
            (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
            if self.log else (value - low) / (high - low)
        )  # fmt: skip
        return round(HEIGHT - self.bottom - share * (HEIGHT - self.bottom - _TOP), 1)

    def axes(self, chart: Chart) -> Iterator[Markup]:
        """Yields the lines and numbers of both axes."""
        end = WIDTH - self.right
        for value in _ticks(self.vertical, self.log):
            up = self.up(value)
            yield tag("line", class_="grid", x1=self.left, x2=end, y1=up, y2=up)
            yield _text(self.left - 5, up + 4, _tick(value), "end")
        base = HEIGHT - self.bottom
        yield tag("line", class_="axis", x1=self.left, x2=end, y1=base, y2=base)
        for value in _ticks(self.horizontal, False, most=5):
            yield _text(self.across(value), base + 16, _tick(value), "middle")
        yield _text(end, HEIGHT - 3, chart.horizontal, "end")

    def marks(self, marks: Marks, curve: Series) -> Iterator[Markup]:
        """Yields what happened: starts and incidents across the whole picture, spikes on the curve."""
        base = HEIGHT - self.bottom
        for step in _few(marks.evaluations):
            at = self.across(step)
            yield tag("line", class_="evaluation", x1=at, x2=at, y1=base, y2=base - 5)
        for step in _few(marks.resumes):
            at = self.across(step)
            title = tag("title", f"resumed at step {step:,}")
            yield tag("line", title, class_="resume", x1=at, x2=at, y1=_TOP, y2=base)
            yield _text(at, _TOP - 6, "↻", "middle")
        for step in _few(marks.incidents):
            at = self.across(step)
            title = tag("title", f"step {step:,} was not finite")
            yield tag("path", title, class_="incident", d=f"M{at - 4} {_TOP - 11}l8 8m0 -8l-8 8M{at} {_TOP}V{base}")
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
        for (_, number), up in zip(places, heights, strict=True):
            one = series[number]
            name = one.name if len(one.name) <= _LONGEST else f"{one.name[: _LONGEST - 1]}…"
            yield tag("g", _text(WIDTH - self.right + 9, up - over + 4, name, class_="name"), class_=f"c{number}")


def _draw_series(frame: _Frame, one: Series, number: int, chart: Chart) -> Markup:
    inside, x, y = list[Markup](), one.x, one.y
    if len(x) > _DRAWN:
        x, y, low, high = binned(x, y)
        edge = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
        inside.append(tag("path", class_="band", d=f"{_path(frame, edge)}Z"))
    elif chart.kind == "noisy" and len(x) > SMOOTHED:
        inside.append(tag("path", class_="faint", d=_path(frame, zip(x, y, strict=True))))
        y = smoothed(y)
    inside.append(tag("path", class_="line", d=_path(frame, zip(x, y, strict=True))))
    if len(one.x) <= (_DRAWN if chart.kind == "measured" else SMOOTHED):
        for place, value in enumerate(y.tolist()):
            at = frame.across(float(x[place]))
            if one.low is not None and one.high is not None and np.isfinite(one.low[place] + one.high[place]):
                ends = (frame.up(float(bound[place])) for bound in (one.low, one.high))
                inside.append(tag("path", class_="bar", d="M{0} {1}V{2}M{3} {1}h6M{3} {2}h6".format(at, *ends, at - 3)))
            inside.append(_marker(at, frame.up(value), number, "mark", 3.4))
    texts = [
        f"{chart.horizontal} {place:,.0f}: {_bounds(one, n, value) if len(x) == len(one.x) else said(value, 5)}"
        for n, (place, value) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
    ]
    return tag(
        "g", *inside, class_=f"series c{number} d{number % 4}", data_name=one.name,
        data_at=json.dumps([frame.across(float(place)) for place in x]), data_text=json.dumps(texts),
    )  # fmt: skip


def _bounds(one: Series, place: int, value: float) -> str:
    if one.low is None or one.high is None or not np.isfinite(one.low[place] + one.high[place]):
        return said(value, 5)
    return f"{said(value, 4)} ({said(one.low[place], 4)} to {said(one.high[place], 4)})"


def _key(name: str, number: int, kind: Kind) -> Markup:
    line = tag("path", class_="line", d="M1 6H29")
    sign = join([line, _marker(15, 6, number, "mark", 3.4)]) if kind == "measured" else line
    return tag("li", tag("span", _sign(sign, number), name, data_of=name))


def _sign(inside: Markup, number: int) -> Markup:
    return tag(
        "svg", tag("g", inside, class_=f"c{number % SERIES} d{number % 4}"), viewBox="0 0 30 12", aria_hidden="true"
    )


def _marker(at: float, up: float, number: int, kind: str, size: float) -> Markup:
    """Returns one of four shapes; the colour is that of a series."""
    colour, half, wide, tall = f"{kind} c{number % SERIES}", f"{size:.1f}", f"{1.4 * size:.1f}", f"{2.2 * size:.1f}"
    shapes = (
        None,
        f"M{at:.1f} {up:.1f}m-{half} -{half}h{2 * size:.1f}v{2 * size:.1f}h-{2 * size:.1f}z",
        f"M{at:.1f} {up:.1f}m0 -{wide}l{wide} {wide}l-{wide} {wide}l-{wide} -{wide}z",
        f"M{at:.1f} {up:.1f}m0 -{wide}l{wide} {tall}h-{2.8 * size:.1f}z",
    )
    shape = shapes[(number + number // SERIES) % 4]
    return tag("circle", class_=colour, cx=at, cy=up, r=size) if shape is None else tag("path", class_=colour, d=shape)


def _notes_of_signs(chart: Chart, series: Sequence[Series]) -> Iterator[str]:
    """Yields what the signs of this picture mean, each where it is there."""
    marks = chart.marks
    if any(len(one.x) > _DRAWN for one in series):
        yield "Line: means of bins of log points; band: their least and largest values."
    elif chart.kind == "noisy" and any(len(one.x) > SMOOTHED for one in series):
        yield "Faint: each log point; line: smoothed."
    if any(one.low is not None and len(one.x) <= _DRAWN for one in series):
        yield "Bars: 95 % intervals."
    meanings = {"↻: resumed.": marks.resumes, "✕: not finite.": marks.incidents, "▼: spike.": marks.spikes}
    yield " ".join(meaning for meaning, steps in meanings.items() if steps)
    if marks.evaluations:
        yield "Ticks on the axis: evaluations."


def _few(steps: Sequence[int], most: int = 60) -> Sequence[int]:
    """Returns the steps, or as many of them, evenly chosen, as can be told apart."""
    return steps if len(steps) <= most else [steps[i] for i in np.linspace(0, len(steps) - 1, most).astype(int)]


def _range(values: Floats, zero: bool) -> tuple[float, float]:
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


def _tick(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit == "M" and abs(value) >= size):
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}".replace("e-0", "e-")


def _path(frame: _Frame, points: object) -> str:
    return "M" + "L".join(f"{frame.across(float(x))} {frame.up(float(y))}" for x, y in points)  # type: ignore[attr-defined]


def _text(x: float, y: float, text: str, anchor: str | None = None, class_: str | None = None) -> Markup:
    return tag("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=class_)
