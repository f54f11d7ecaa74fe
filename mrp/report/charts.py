"""Curves as SVG, which follows the colours of the page: nothing but numbers comes in, and no library draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from mrp.report.document import Markup, join, tag
from mrp.report.frame import BOTTOM, HEIGHT, TOP, WIDTH, Frame, span, text
from mrp.report.series import SERIES, SMOOTHED, Chart, Floats, Kind, Series, binned, said, smoothed

_DRAWN = 300  # points; of more, what a bin holds is drawn: its mean, its least and its largest value


def draw(chart: Chart) -> Markup:
    """Returns a figure: the sentence, the curves, what the signs mean, and a place for the value under the pointer.

    A series looks the same in all charts in which it has the same place, wherever others have no values.
    """
    finite = {number: one.finite() for number, one in enumerate(chart.series[:SERIES])}
    drawn = {number: one for number, one in finite.items() if len(one.x)}
    series = list(drawn.values())
    if not series:
        return Markup("")
    frame = Frame.of(chart, series)
    inside = [*frame.axes(chart), *frame.marks(chart.marks, series[0])]
    inside += [_draw_series(frame, one, number, chart) for number, one in drawn.items()]
    inside += frame.names(drawn)
    cursor = tag("line", class_="axis cursor hidden", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM)
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
    frame = Frame(span(x, False), span(y, False), log=False, left=8, right=8, bottom=8)
    inside = [
        _marker(frame.across(at), frame.up(up), group, "dot", 3.2)
        for at, up, group in zip(x.tolist(), y.tolist(), groups, strict=True)
    ]
    for number, label in enumerate(labels):
        chosen = np.asarray(groups) == number
        if chosen.any():
            at, up = float(np.median(x[chosen])), float(np.median(y[chosen]))
            inside.append(text(frame.across(at), frame.up(up) + 4, label, "middle", class_="halo"))
    drawn = tag("svg", *inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    keys = [tag("li", _sign(_marker(15, 6, n, "dot", 4), n), tag("span", one)) for n, one in enumerate(labels)]
    caption = tag("figcaption", tag("h3", title))
    return tag("figure", caption, drawn, tag("ul", *keys, class_="legend"), tag("div", note, class_="note"))


def _draw_series(frame: Frame, one: Series, number: int, chart: Chart) -> Markup:
    inside, x, y = list[Markup](), one.x, one.y
    if len(x) > _DRAWN:
        x, y, low, high = binned(x, y)
        edge = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
        inside.append(tag("path", class_="band", d=f"{frame.path(edge)}Z"))
        bins = zip(*(part.tolist() for part in (y, low, high)), strict=True)
        values = [f"mean {said(mean, 4)}, {said(least, 4)} to {said(most, 4)}" for mean, least, most in bins]
    elif chart.kind == "noisy" and len(x) > SMOOTHED:
        inside.append(tag("path", class_="faint", d=frame.path(zip(x, y, strict=True))))
        y = smoothed(y)
        both = zip(one.y.tolist(), y.tolist(), strict=True)
        values = [f"{said(value, 5)}, smoothed {said(mean, 5)}" for value, mean in both]
    else:
        values = [_bounds(one, place, value) for place, value in enumerate(y.tolist())]
    inside.append(tag("path", class_="line", d=frame.path(zip(x, y, strict=True))))
    if len(one.x) <= (_DRAWN if chart.kind == "measured" else SMOOTHED):
        for place, value in enumerate(y.tolist()):
            at = frame.across(float(x[place]))
            if one.low is not None and one.high is not None and np.isfinite(one.low[place] + one.high[place]):
                ends = (frame.up(float(bound[place])) for bound in (one.low, one.high))
                inside.append(tag("path", class_="bar", d="M{0} {1}V{2}M{3} {1}h6M{3} {2}h6".format(at, *ends, at - 3)))
            inside.append(_marker(at, frame.up(value), number, "mark", 3.4))
    texts = [f"{chart.horizontal} {place:,.0f}: {value}" for place, value in zip(x.tolist(), values, strict=True)]
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
