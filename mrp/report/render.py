"""A page of results in the terminal, in Markdown, in LaTeX, as JSON and as a picture: all from the same table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mrp.evaluate.interval import in_percent
from mrp.files import replacing, write_atomically
from mrp.report.page import BEST, Cell, Column, Page

if TYPE_CHECKING:
    from rich.table import Table

ENDINGS = (".png", ".md", ".tex", ".json")
_MOST_COLUMNS = 5  # where there are more, and fewer rows, measures are the rows
_COLOURS = ("#1f5f8b", "#c4622d", "#3f7d4e", "#7a4f8f", "#8a6d1f", "#4b4b4b", "#b03060", "#2a8c8c")
_MARKERS, _LINES = "osD^vP*", ("-", "--", "-.", ":")  # with eight colours 56 runs that all look different
_PANELS = 4  # beside each other
_BETWEEN = 3  # letters between two columns of a terminal's table
_HEADING = 16  # letters of a column's name, which is broken into lines where its values are shorter


class Entry(NamedTuple):
    """What stands at one place of the table as it is shown."""

    cell: Cell
    is_best: bool


class Shown(NamedTuple):
    """The table as it is shown: with measures as columns, or as rows where that is narrower."""

    header: list[str]
    lines: list[tuple[list[str], list[Entry]]]  # the labels of a row, then its entries


def shown(page: Page) -> Shown:
    """Returns the table in the orientation in which it is shown."""
    rows, columns = range(len(page.rows)), range(len(page.columns))

    def entry(row: int, column: int) -> Entry:
        return Entry(page.cells.get((row, column), Cell()), page.is_best(row, column))

    names = [row.name for row in page.rows]
    data = {column.data for column in page.columns if column.data}
    if len(columns) > max(_MOST_COLUMNS, len(rows)):
        labels = [[*([one.data] if len(data) > 1 else []), one.title] for one in page.columns]
        lines = [(labels[c], [entry(r, c) for r in rows]) for c in columns]
        return Shown([*(["data"] if len(data) > 1 else []), "measure", *names], lines)
    titles = [f"{one.data}: {one.title}" if one.data and len(data) > 1 else one.title for one in page.columns]
    return Shown(["weights", *titles], [([names[r]], [entry(r, c) for c in columns]) for r in rows])


def text_of(cell: Cell, percent: str = " %", bounds: str = " ({} to {})") -> str:
    """Returns a cell in words."""
    one = cell.measure
    if one is None:
        return cell.text

    def number(value: float) -> str:
        return in_percent(value) if one.share else f"{value:.4g}"

    value = number(one.value) + (percent if one.share else "")
    return value if one.low is None or one.high is None else value + bounds.format(number(one.low), number(one.high))


def terminal(page: Page, width: int) -> Iterator[Table]:
    """Yields the table for a terminal, in parts below each other where it is too wide; a star marks the best."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    header, lines = shown(page)
    labels = len(lines[0][0]) if lines else 1

    def value(entry: Entry) -> Text:
        return Text(f"{text_of(entry.cell)} *", "bold") if entry.is_best else Text(text_of(entry.cell))

    rows = [[*map(Text, names), *map(value, entries)] for names, entries in lines]
    needed = [
        _BETWEEN + max(min(_HEADING, cell_len(name)), *(row[number].cell_len for row in rows), 0)
        for number, name in enumerate(header)
    ]
    parts = [[*range(labels)]]
    for number in range(labels, len(header)):
        if len(parts[-1]) > labels and sum(needed[one] for one in (*parts[-1], number)) >= width:
            parts.append([*range(labels)])
        parts[-1].append(number)
    for part in parts:
        below = "\n".join(notes(page, "*")) if part is parts[-1] else None
        table = Table(title=_title(page) if part is parts[0] else None, caption=below)
        for number in part:
            table.add_column(header[number], justify="left" if number < labels else "right", overflow="fold")
        for row in rows:
            table.add_row(*(row[number] for number in part))
        yield table


def markdown(page: Page) -> str:
    """Returns the table for a README or an issue; the best is bold."""
    header, lines = shown(page)

    def row(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    table = [row(header), row(["---"] * len(header))]
    for names, entries in lines:
        table.append(row([*names, *(f"**{text_of(cell)}**" if best else text_of(cell) for cell, best in entries)]))
    return "\n\n".join([_title(page), "\n".join(table), *notes(page, "Bold"), *_pairs(page)]) + "\n"


def latex(page: Page) -> str:
    """Returns the table for a paper (package booktabs); the best is bold."""
    header, lines = shown(page)
    labels = len(lines[0][0]) if lines else 1

    def entry(cell: Cell, best: bool) -> str:
        one = cell.measure
        if one is None:
            return _escaped(cell.text)
        bare = text_of(cell, "", "")
        bare = rf"\textbf{{{bare}}}" if best else bare
        return bare + text_of(cell, "", " {{\\scriptsize ({}--{})}}").removeprefix(text_of(cell, "", ""))

    rows = [[*map(_escaped, names), *(entry(*one) for one in entries)] for names, entries in lines]
    body = [" & ".join(cells) + r" \\" for cells in rows]
    unit = "in %" if all(one.measure is None or one.measure.share for one in page.cells.values()) else "shares in %"
    caption = " ".join(map(_escaped, [f"{_title(page)}, {unit} with 95 % intervals.", *notes(page, "Bold")]))
    return "\n".join([
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{'l' * labels}{'r' * (len(header) - labels)}}}", r"\toprule",
        " & ".join(map(_escaped, header)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
        r"\end{table}", "",
    ])  # fmt: skip


def write(page: Page, path: Path) -> None:
    """Writes the page in the form that the end of the file's name says."""
    forms: dict[str, Callable[[Page], str]] = {
        ".md": markdown, ".tex": latex, ".json": lambda page: json.dumps(page.plain(), indent=1),
    }  # fmt: skip
    if path.suffix == ".png":
        picture(page, path)
    else:
        write_atomically(path, forms[path.suffix](page))


def picture(page: Page, path: Path) -> None:
    """Draws one panel per measure: over steps where a run has several, else a line per row. It needs no colours."""
    from matplotlib.figure import Figure

    from mrp.report.plots import tidy

    columns = [number for number, column in enumerate(page.columns) if column.data]
    over_steps = {column for column in columns if _over_steps(page, column)}
    single = {row for row, column in page.cells if column in {*columns} - over_steps}  # rows that are drawn as such
    rows = [row for row in range(len(page.rows)) if row in single]
    across = min(_PANELS, len(columns))
    down = math.ceil(len(columns) / across)
    longest = max(len(row.name) for row in page.rows)
    width, height = 3.6 * across + 0.075 * longest, max(2.6, 1.3 + 0.34 * len(rows))
    figure = Figure(figsize=(width, height * down + 0.6), dpi=120, layout="constrained")
    lines: dict[str, Any] = {}  # what each run looks like
    panels = figure.subplots(down, across, squeeze=False)
    for number, panel in enumerate(panels.flat):
        if number >= len(columns):
            panel.set_visible(False)
            continue
        column = columns[number]
        if column in over_steps:
            lines |= _draw_over_steps(panel, page, column)
        else:
            _draw_rows(panel, page, column, rows, labelled=number % across == 0)
        about = page.columns[column]
        panel.set_title(f"{about.data}\n{about.title}", fontsize=9, loc="left")
        tidy(panel)
    if lines:
        beside = max(1, int(width / (0.075 * longest + 0.6)))
        figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(lines) / beside))
        figure.legend(lines.values(), lines.keys(), loc="outside lower left", ncols=beside, frameon=False, fontsize=8)
    title = f"{page.title}: values with 95 % intervals" + (f"\nfilled: {BEST}" if rows else "")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    with replacing(path) as file:
        figure.savefig(file, format="png")


def _title(page: Page) -> str:
    data = {column.data for column in page.columns if column.data}
    return f"{page.title} on {next(iter(data))}" if len(data) == 1 else page.title


def notes(page: Page, mark: str) -> list[str]:
    """Returns what is said below a table."""
    any_best = any(page.is_best(row, column) for row, column in page.cells)
    return [*([f"{mark}: {BEST}."] if any_best else []), *page.notes]


def _pairs(page: Page) -> list[str]:
    """Returns the differences between two rows as a table, where there are only two."""
    found = page.differences() if len(page.rows) == 2 else []
    if not found:
        return []
    lines = ["| data | measure | difference | McNemar's p |", "| --- | --- | --- | --- |"]
    for one in found:
        scale, digits, unit = (100, ".1f", " points") if one["share"] else (1, ".4g", "")
        value, low, high = (format(scale * one[name], digits) for name in ("value", "low", "high"))
        p = "" if one["p"] is None else f"{one['p']:.2g}"
        lines.append(f"| {one['data']} | {one['measure']} | {value}{unit} ({low} to {high}) | {p} |")
    first, second = (row.name for row in page.rows)
    return [f"{first} minus {second}, with 95 % intervals:", "\n".join(lines)]


def _escaped(text: str) -> str:
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(words.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)


def _bounds(cell: Cell) -> tuple[float, list[list[float]] | None]:
    """Returns the value, in percent where it is a share, and how far its interval reaches down and up."""
    one = cell.measure
    assert one is not None
    scale = 100 if one.share else 1
    if one.low is None or one.high is None:
        return scale * one.value, None
    return scale * one.value, [[scale * (one.value - one.low)], [scale * (one.high - one.value)]]


def _over_steps(page: Page, column: int) -> bool:
    runs = [page.rows[row].run for row, at in page.cells if at == column and page.rows[row].step is not None]
    return len(set(runs)) < len(runs)


def _draw_over_steps(panel: Any, page: Page, column: int) -> dict[str, Any]:
    """Draws a line per run; returns these."""
    lines: dict[str, Any] = {}
    styles = zip(dict.fromkeys(row.run for row in page.rows), cycle(_COLOURS), cycle(_MARKERS), cycle(_LINES))
    for run, colour, marker, line in styles:
        points = sorted(
            (row.step, number) for number, row in enumerate(page.rows)
            if row.run == run and row.step is not None and (number, column) in page.cells
        )  # fmt: skip
        if points:
            found = [_bounds(page.cells[number, column]) for _, number in points]
            errors = [[part[side][0] if part else 0 for _, part in found] for side in (0, 1)]
            lines[run] = panel.errorbar(
                [step for step, _ in points], [value for value, _ in found], errors, color=colour, marker=marker,
                linestyle=line, markersize=4, capsize=2,
            )  # fmt: skip
    panel.set(xlabel="step", ylabel=_unit(page, column))
    return lines


def _draw_rows(panel: Any, page: Page, column: int, rows: Sequence[int], labelled: bool) -> None:
    """Draws some rows of the page, one below the other."""
    for place, row in enumerate(rows):
        cell = page.cells.get((row, column), Cell())
        if cell.measure is None:
            continue
        value, errors = _bounds(cell)
        colour = _COLOURS[row % len(_COLOURS)]
        face = colour if page.is_best(row, column) else "white"
        marker = "s" if cell.seeds else "o"
        panel.errorbar([value], [place], xerr=errors, color=colour, marker=marker, mfc=face, markersize=6, capsize=3)
        text = f"{value:.1f}" if cell.measure.share else f"{value:.4g}"
        panel.annotate(text, (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    panel.set_yticks(range(len(rows)), [page.rows[row].name if labelled else "" for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.margins(x=0.15)
    panel.set_xlabel(_unit(page, column))


def _unit(page: Page, column: int) -> str:
    about: Column = page.columns[column]
    shares = [cell.measure.share for (_, at), cell in page.cells.items() if at == column and cell.measure]
    direction = {"lower": ", lower is better", "": ""}.get(about.better, "")
    return ("%" if all(shares) else "value") + direction
